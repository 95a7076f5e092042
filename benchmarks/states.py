"""What is saved: a model, its optimizer with both moments, its schedule."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import xxhash

_SEED = 0
# A layer of the sized states: 1024 x 1024 and a bias in fp32, three times with AdamW's moments.
_LAYER_BYTES = 3 * 4 * (1024 * 1024 + 1024)


@dataclass
class State:
    """One training's state.

    Args:
        model: What trains.
        saved: What is saved of it: itself, or its adapters.
        optimizer: AdamW over what trains.
        scheduler: A schedule that changes nothing.
        batch: Token ids, where the model takes such.
    """

    model: torch.nn.Module
    saved: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LambdaLR
    batch: torch.Tensor

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return next(self.saved.parameters()).device

    def forward_backward(self) -> torch.Tensor:
        """What comes between two updates. Gives the loss."""
        # No page faults for gradients, as on an accelerator.
        self.optimizer.zero_grad(set_to_none=False)
        loss = self.model(input_ids=self.batch, labels=self.batch).loss
        loss.backward()
        found: torch.Tensor = loss.detach()
        return found

    def update(self) -> None:
        """The update, and the step of the schedule."""
        self.optimizer.step()
        self.scheduler.step()

    def drop_gradients(self) -> None:
        """Gives the memory of the gradients back."""
        self.optimizer.zero_grad(set_to_none=True)

    def settle(self) -> None:
        """Waits until a device has done what it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor that a resume needs, once, by name."""
        seen = set()
        for name, tensor in self.saved.state_dict().items():
            if tensor.data_ptr() not in seen:
                seen.add(tensor.data_ptr())
                yield f"model.{name}", tensor
        for number, parameter in enumerate(self.saved.parameters()):
            for key, value in self.optimizer.state[parameter].items():
                yield f"optimizer.{number}.{key}", value

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for _, tensor in self.tensors())

    def digests(self) -> Mapping[str, str]:
        """What the tensors hold, by name."""
        return {name: _digest(tensor) for name, tensor in self.tensors()}

    def clear(self) -> None:
        """Sets every tensor to zero, so that a load that forgets one is seen."""
        with torch.no_grad():
            for _, tensor in self.tensors():
                tensor.zero_()


def gpt2(device: str = "cpu", layers: int = 12, width: int = 768, words: int = 50257) -> State:
    """GPT-2 small in fp32 with AdamW: 1.5 GB. Smaller for tests."""
    return _after_a_step(fresh_gpt2(device, layers, width, words))


def fresh_gpt2(device: str, layers: int, width: int, words: int, seed: int = _SEED) -> State:
    """The same as a process has it that has just begun: no step was made, and the optimizer has no moments."""
    torch.manual_seed(seed)
    return _fresh(_gpt2(layers, width, words), device, words)


def lora(device: str = "cpu", layers: int = 12, width: int = 768, words: int = 50257) -> State:
    """Adapters on a frozen GPT-2 small: 14 MB are trained and saved."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(_SEED)
    config = LoraConfig(r=32, target_modules=["c_attn"], fan_in_fan_out=True)
    return _after_a_step(_fresh(get_peft_model(_gpt2(layers, width, words), config), device, words))


def sized(gigabytes: float, device: str = "cpu") -> State:
    """Linear layers with AdamW, so many bytes in all."""
    torch.manual_seed(_SEED)
    layers = max(1, round(gigabytes * 1e9 / _LAYER_BYTES))
    model = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(layers)))
    return _after_a_step(_fresh(model, device, 1))


def _gpt2(layers: int, width: int, words: int) -> torch.nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    model: torch.nn.Module = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=words,
            n_layer=layers,
            n_embd=width,
            n_head=max(1, width // 64),
            bos_token_id=words - 1,
            eos_token_id=words - 1,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )
    return model


def _fresh(model: torch.nn.Module, device: str, words: int) -> State:
    model.to(device)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    saved = model
    if len(trained) < len(list(model.parameters())):
        saved = torch.nn.ParameterDict({name.replace(".", "/"): parameter for name, parameter in trained.items()})
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-5, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, _constant)
    # The same in every process, whatever it has drawn before.
    batch = (torch.arange(32, device=device) % words).unsqueeze(0)
    return State(model, saved, optimizer, scheduler, batch)


def _after_a_step(state: State) -> State:
    for group in state.optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = parameter.detach() * 0.01
    state.update()  # makes the moments
    state.drop_gradients()
    return state


def _constant(step: int) -> float:
    return 1.0


def _digest(tensor: torch.Tensor) -> str:
    return xxhash.xxh3_128_hexdigest(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
