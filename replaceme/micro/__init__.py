"""The embedded model: its corpus, its tasks, its tokenizer and its training, all made by the code of this folder."""
