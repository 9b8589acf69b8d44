# the workflow of my.yaml without Snakemake, one step a line
replaceme model models/tiny/first --out model.json
replaceme tokens model.json --dataset plain.jsonl --samples 24 --tokens 16 --out tokens.safetensors
replaceme distances model.json tokens.safetensors --batch-size 4 --threads 1 --out distances.safetensors
replaceme candidates model.json tokens.safetensors --blocks 1 --batch-size 4 --threads 1 --out candidates.json
replaceme cut model.json --candidates candidates.json --blocks 1 --out tiny.v1/plain/n1/cut.json
replaceme gram model.json tokens.safetensors tiny.v1/plain/n1/cut.json --shard 0 --shards 2 --batch-size 4 --threads 1 --out 0.safetensors
replaceme gram model.json tokens.safetensors tiny.v1/plain/n1/cut.json --shard 1 --shards 2 --batch-size 4 --threads 1 --out 1.safetensors
replaceme sum 0.safetensors 1.safetensors --out sum.safetensors
replaceme fit model.json tiny.v1/plain/n1/cut.json --statistics sum.safetensors --out tiny.v1/plain/n1/ls
replaceme fit model.json tiny.v1/plain/n1/cut.json --transform identity --out tiny.v1/plain/n1/uidl
replaceme merge model.json tiny.v1/plain/n1/cut.json tiny.v1/plain/n1/ls/transform.safetensors --out tiny.v1/plain/n1/ls/model
replaceme verify model.json tiny.v1/plain/n1/cut.json tiny.v1/plain/n1/ls/transform.safetensors tiny.v1/plain/n1/ls/model --out tiny.v1/plain/n1/ls/verify.json
replaceme merge model.json tiny.v1/plain/n1/cut.json tiny.v1/plain/n1/uidl/transform.safetensors --out tiny.v1/plain/n1/uidl/model
replaceme verify model.json tiny.v1/plain/n1/cut.json tiny.v1/plain/n1/uidl/transform.safetensors tiny.v1/plain/n1/uidl/model --out tiny.v1/plain/n1/uidl/verify.json
replaceme evaluate model.json --include tasks --task pick --task last_word='{"in_average": false}' --perplexity last_word --out tiny.v1/baseline/evaluation/items.json
replaceme evaluate tiny.v1/plain/n1/ls/model --include tasks --task pick --task last_word='{"in_average": false}' --perplexity last_word --out tiny.v1/plain/n1/ls/evaluation/items.json
replaceme evaluate tiny.v1/plain/n1/uidl/model --include tasks --task pick --task last_word='{"in_average": false}' --perplexity last_word --out tiny.v1/plain/n1/uidl/evaluation/items.json
replaceme speed model.json --prompt-tokens 8 --new-tokens 2 --repeats 1 --out tiny.v1/baseline/speed.json
replaceme speed tiny.v1/plain/n1/ls/model --prompt-tokens 8 --new-tokens 2 --repeats 1 --out tiny.v1/plain/n1/ls/speed.json
replaceme speed tiny.v1/plain/n1/uidl/model --prompt-tokens 8 --new-tokens 2 --repeats 1 --out tiny.v1/plain/n1/uidl/speed.json
replaceme table tiny.v1/plain/n1/uidl tiny.v1/plain/n1/ls --baseline tiny.v1/baseline --evaluation items --out results/tables/main.1
replaceme figure table results/tables/main.1.csv --out table.svg
replaceme figure distances distances.safetensors --out distances.svg
replaceme figure cut tiny.v1/plain/n1/cut.json --out cut.svg
