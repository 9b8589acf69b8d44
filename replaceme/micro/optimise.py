"""One optimiser step of the embedded model's training, as fast as one GPU allows and plain on a CPU."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM


class Step:
    """One optimiser step on a batch of rows; on a GPU compiled per block and replayed as one CUDA graph."""

    def __init__(self, model: "LlamaForCausalLM", batch: int, sequence: int, weight_decay: float) -> None:
        import torch

        self.model, self.device = model, model.device
        on_gpu = self.device.type == "cuda"
        matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
        gains = [parameter for parameter in model.parameters() if parameter.dim() != 2]
        self.rate = torch.zeros((), device=self.device)
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": gains, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(
            groups, lr=self.rate, betas=(0.9, 0.95), fused=on_gpu or None, capturable=on_gpu
        )
        self.rows = torch.zeros(batch, sequence + 1, dtype=torch.long, device=self.device)
        positions = torch.arange(sequence, device=self.device)[None]
        self.position_embeddings = model.model.rotary_emb(model.model.embed_tokens.weight[:1], positions)
        self.block, self.head = (torch.compile(_block), torch.compile(_head)) if on_gpu else (_block, _head)
        self.loss = torch.zeros((), device=self.device)
        self.graph = self._capture() if on_gpu else None

    def __call__(self, rows: "torch.Tensor", rate: float) -> "torch.Tensor":
        """Train on rows [batch, sequence + 1] of ids and return the loss before the step, still on the device."""
        self.rows.copy_(rows)
        self.rate.fill_(rate)
        if self.graph is None:
            self._run()
        else:
            self.graph.replay()
        return self.loss

    def _run(self) -> None:
        import torch

        inputs, targets = self.rows[:, :-1], self.rows[:, 1:].contiguous()
        amp = torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda", cache_enabled=False)
        with amp:
            hidden = self.model.model.embed_tokens(inputs)
            for layer in self.model.model.layers:
                hidden = self.block(layer, hidden, self.position_embeddings)
            loss = self.head(self.model, hidden, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        self.loss.copy_(loss.detach())

    def _capture(self) -> "torch.cuda.CUDAGraph":
        """Warm up with a learning rate of 0, which changes no weight, reset the moments, and record the step as a
        graph.
        """
        import torch

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._run()
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()
        return graph


def _block(layer, hidden: "torch.Tensor", position_embeddings: tuple) -> "torch.Tensor":
    return layer(hidden, position_embeddings=position_embeddings, attention_mask=None)


def _head(model: "LlamaForCausalLM", hidden: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
    from torch.nn.functional import cross_entropy

    logits = model.lm_head(model.model.norm(hidden))
    return cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
