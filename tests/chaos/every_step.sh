# every kind of step on the project of the workflow's tests, one a line, in order
replaceme model models/tiny/first --out tiny.v1/model.json
replaceme tokens tiny.v1/model.json --dataset plain.jsonl --samples 24 --tokens 16 --out tiny.v1/plain/tokens.safetensors
replaceme generate tiny.v1/model.json --dataset plain.jsonl --samples 4 --tokens 24 --new-tokens 4 --threads 1 --out tiny.v1/own/generated.jsonl
replaceme tokens tiny.v1/model.json --dataset tiny.v1/own/generated.jsonl --samples 4 --tokens 16 --out tiny.v1/own/tokens.safetensors
replaceme mix tiny.v1/plain/tokens.safetensors tiny.v1/own/tokens.safetensors --weights 2 1 --samples 9 --out tiny.v1/mixed/tokens.safetensors
replaceme distances tiny.v1/model.json tiny.v1/plain/tokens.safetensors --batch-size 4 --threads 1 --out tiny.v1/plain/distances.safetensors
replaceme candidates tiny.v1/model.json tiny.v1/plain/tokens.safetensors --blocks 1 --batch-size 4 --threads 1 --out tiny.v1/plain/candidates.json
replaceme cut tiny.v1/model.json --candidates tiny.v1/plain/candidates.json --blocks 1 --out tiny.v1/plain/n1/cut.json
replaceme gram tiny.v1/model.json tiny.v1/plain/tokens.safetensors tiny.v1/plain/n1/cut.json --shard 0 --shards 2 --batch-size 4 --threads 1 --out tiny.v1/plain/n1/gram/0-of-2.safetensors
replaceme gram tiny.v1/model.json tiny.v1/plain/tokens.safetensors tiny.v1/plain/n1/cut.json --shard 1 --shards 2 --batch-size 4 --threads 1 --out tiny.v1/plain/n1/gram/1-of-2.safetensors
replaceme sum tiny.v1/plain/n1/gram/0-of-2.safetensors tiny.v1/plain/n1/gram/1-of-2.safetensors --out tiny.v1/plain/n1/gram/sum-of-2.safetensors
replaceme gram tiny.v1/model.json tiny.v1/plain/tokens.safetensors tiny.v1/plain/n1/cut.json --placement down_proj --recycle 0.25 --before --batch-size 4 --threads 1 --out tiny.v1/plain/n1/gram/before.safetensors
replaceme recycle tiny.v1/model.json tiny.v1/plain/n1/gram/before.safetensors --placement down_proj --recycle 0.25 --threads 1 --out tiny.v1/plain/n1/gram/recycled.safetensors
replaceme rows tiny.v1/model.json tiny.v1/plain/tokens.safetensors tiny.v1/plain/n1/cut.json --batch-size 4 --fit-tokens 200 --threads 1 --out tiny.v1/plain/n1/rows/200
replaceme fit tiny.v1/model.json tiny.v1/plain/n1/cut.json --statistics tiny.v1/plain/n1/gram/sum-of-2.safetensors --threads 1 --out tiny.v1/plain/n1/ls
replaceme fit tiny.v1/model.json tiny.v1/plain/n1/cut.json --transform identity --threads 1 --out tiny.v1/plain/n1/uidl
replaceme fit tiny.v1/model.json tiny.v1/plain/n1/cut.json --statistics tiny.v1/plain/n1/gram/sum-of-2.safetensors --rows tiny.v1/plain/n1/rows/200 --objective cosine --solver adam --fit-tokens 200 --batch-tokens 64 --epochs 3 --threads 1 --out tiny.v1/plain/n1/adam
replaceme fit tiny.v1/model.json tiny.v1/plain/n1/cut.json --method llm_streamline --tokens tiny.v1/plain/tokens.safetensors --epochs 1 --batch-tokens 64 --threads 1 --out tiny.v1/plain/n1/streamline
replaceme merge tiny.v1/model.json tiny.v1/plain/n1/cut.json tiny.v1/plain/n1/ls/transform.safetensors --out tiny.v1/plain/n1/ls/model
replaceme merge tiny.v1/model.json tiny.v1/plain/n1/cut.json tiny.v1/plain/n1/uidl/transform.safetensors --out tiny.v1/plain/n1/uidl/model
replaceme verify tiny.v1/model.json tiny.v1/plain/n1/cut.json tiny.v1/plain/n1/ls/transform.safetensors tiny.v1/plain/n1/ls/model --threads 1 --out tiny.v1/plain/n1/ls/verify.json
replaceme heal tiny.v1/plain/n1/ls/model tiny.v1/plain/tokens.safetensors --train full --steps 4 --learning-rate 0.01 --held-out 4 --checkpoint-seconds 0 --no-verify --threads 1 --report tiny.v1/plain/n1/ls/healed/few/healing.json --out tiny.v1/plain/n1/ls/healed/few/model
replaceme evaluate tiny.v1/model.json --include tasks --task pick --task last_word='{"in_average": false}' --perplexity last_word --threads 1 --out tiny.v1/baseline/evaluation/items.json
replaceme evaluate tiny.v1/plain/n1/ls/model --include tasks --task pick --task last_word='{"in_average": false}' --perplexity last_word --threads 1 --out tiny.v1/plain/n1/ls/evaluation/items.json
replaceme evaluate tiny.v1/plain/n1/uidl/model --include tasks --task pick --task last_word='{"in_average": false}' --perplexity last_word --threads 1 --out tiny.v1/plain/n1/uidl/evaluation/items.json
replaceme speed tiny.v1/model.json --prompt-tokens 8 --new-tokens 2 --repeats 1 --threads 1 --out tiny.v1/baseline/speed.json
replaceme speed tiny.v1/plain/n1/ls/model --prompt-tokens 8 --new-tokens 2 --repeats 1 --threads 1 --out tiny.v1/plain/n1/ls/speed.json
replaceme speed tiny.v1/plain/n1/uidl/model --prompt-tokens 8 --new-tokens 2 --repeats 1 --threads 1 --out tiny.v1/plain/n1/uidl/speed.json
replaceme table tiny.v1/plain/n1/uidl tiny.v1/plain/n1/ls --baseline tiny.v1/baseline --evaluation items --out tables/main.1
replaceme figure table tables/main.1.csv --out tables/main.1.svg
replaceme figure distances tiny.v1/plain/distances.safetensors --out tiny.v1/plain/distances.svg
replaceme figure cut tiny.v1/plain/n1/cut.json --out tiny.v1/plain/n1/cut.svg
replaceme figure healing tiny.v1/plain/n1/ls/healed/few/healing.json --out tiny.v1/plain/n1/ls/healed/few/healing.svg
replaceme plot --figure '{"kind": "lines", "tables": ["main.1"]}' --table tables/main.1.csv --out figures/lines
replaceme provenance --models tiny.v1/model.json --calibrations tiny.v1/plain/tokens.safetensors --measured tiny.v1/baseline/speed.json tiny.v1/plain/n1/ls/evaluation/items.json --out provenance
replaceme prune models/tiny/first --dataset plain.jsonl --samples 24 --tokens 16 --blocks 1 --batch-size 4 --no-verify --threads 1 --out pruned
replaceme publish . --command test --out published
