"""`holdfast.attach` on a Trainer of one's own: what the Trainer is known for keeps working, and secrets stay out."""

import json
import signal
from pathlib import Path

from helpers.trainings import Launcher, Process, events
from helpers.waiting import wait_until

OWN = """
import sys, torch, holdfast
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

class Seen(TrainerCallback):
    def on_save(self, args, state, control, **kwargs):
        path = f"out/checkpoint-{state.global_step}/MANIFEST.json"
        print("on_save after the commit:", __import__("os").path.exists(path), flush=True)

rows = [{"input_ids": torch.tensor([1, 2, 3]), "labels": torch.tensor([1, 2, 3])}] * 16
args = TrainingArguments(
    "out", max_steps=int(sys.argv[1]), eval_strategy="steps", eval_steps=3, save_steps=3, save_total_limit=2,
    load_best_model_at_end=True, learning_rate=1e-3, hub_token="canary-secret", report_to="none", use_cpu=True,
    disable_tqdm=True,
)
model = LlamaForCausalLM(LlamaConfig.from_pretrained(sys.argv[2]))
trainer = Trainer(model, args, train_dataset=rows, eval_dataset=rows, callbacks=[Seen()])
holdfast.attach(trainer, on_stop=sys.argv[3])
trainer.train(resume_from_checkpoint="auto")
print("after train", trainer.state.best_model_checkpoint, trainer.args.hub_token, flush=True)
"""


def own(launcher: Launcher, folder: Path, tiny: Path, *, steps: int, on_stop: str = "exit") -> Process:
    return launcher.start(str(steps), tiny / "model", on_stop, cwd=folder, program=OWN)


def test_the_best_model_callbacks_and_limits_work_and_no_secret_is_on_disk(
    launcher: Launcher, tmp_path: Path, tiny: Path
) -> None:
    process = own(launcher, tmp_path, tiny, steps=12)
    assert process.wait() == 0, process.output
    run = tmp_path / "out"
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-9"]
    state = json.loads((run / "checkpoint-12" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == "out/checkpoint-12"
    assert process.output.count("on_save after the commit: True") == 4
    assert "after train out/checkpoint-12 canary-secret" in process.output, "the Trainer's own arguments were changed"
    assert not [path for path in run.rglob("*") if path.is_file() and b"canary-secret" in path.read_bytes()]


def test_a_stop_ends_the_script_with_75_unless_it_asked_for_a_return(
    launcher: Launcher, tmp_path: Path, tiny: Path
) -> None:
    for on_stop, code in (("exit", 75), ("return", 0)):
        folder = tmp_path / on_stop
        folder.mkdir()
        process = own(launcher, folder, tiny, steps=1_000_000, on_stop=on_stop)
        wait_until(lambda folder=folder: events(folder / "out", "saved"))  # type: ignore[misc]
        process.send(signal.SIGTERM)
        assert process.wait() == code
        assert ("after train" in process.output) == (on_stop == "return")


def test_ctrl_c_leaves_the_model_of_its_checkpoint_in_output_dir(
    launcher: Launcher, tmp_path: Path, tiny: Path
) -> None:
    process = own(launcher, tmp_path, tiny, steps=1_000_000)
    wait_until(lambda: events(tmp_path / "out", "saved"))
    process.send(signal.SIGINT)
    assert process.wait() == 75, process.output
    last = Path(events(tmp_path / "out", "saved")[-1]["path"])
    assert (tmp_path / "out/model.safetensors").read_bytes() == (last / "model.safetensors").read_bytes()
    assert "the model can be loaded from out" in process.output
    assert not (tmp_path / "out/optimizer.pt").exists()


# Presses Ctrl+C in the evaluation of a step whose save is due, and waits there until the stop has its checkpoint.
PRESSES = """
import os, signal, time
from pathlib import Path
class Presses(TrainerCallback):
    def on_prediction_step(self, args, state, control, **kwargs):
        if state.global_step == 3 and not Path("pressed").exists():
            Path("pressed").touch()
            os.kill(os.getpid(), signal.SIGINT)
            while not Path("out/checkpoint-3").exists():
                time.sleep(0.01)
"""


def test_ctrl_c_in_the_step_of_a_due_save_leaves_one_checkpoint_of_it(
    launcher: Launcher, tmp_path: Path, tiny: Path
) -> None:
    program = OWN.replace("\nclass Seen", f"{PRESSES}\nclass Seen").replace("[Seen()]", "[Seen(), Presses()]")
    process = launcher.start("9", tiny / "model", "exit", cwd=tmp_path, program=program)
    assert process.wait() == 75, process.output
    assert [(saved["step"], saved["doors"]) for saved in events(tmp_path / "out", "saved")] == [(3, ["signal"])]
    assert not list((tmp_path / "out").glob("superseded-*"))
    again = own(launcher, tmp_path, tiny, steps=9)
    assert again.wait() == 0, again.output
    assert events(tmp_path / "out", "end")[-1]["outcome"] == "finished"


# A hub that has made the repository, and from then on refuses everything. It notes what it was asked to take.
PUSHED = """
import json, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import holdfast, huggingface_hub.constants, torch
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from transformers.utils.hub import hf_api

class Hub(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        good = {
            "/api/repos/create": {"url": f"{hf_api().endpoint}/me/model", "id": "me/model"},
            "/api/validate-yaml": {"errors": [], "warnings": []},
        }
        with open("hub.jsonl", "a") as file:
            file.write(json.dumps([self.headers["authorization"], self.path, asked]) + "\\n")
        body = json.dumps(good.get(self.path, {"error": "no more"})).encode()
        self.send_response(200 if self.path in good else 403)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
huggingface_hub.constants.HF_HUB_OFFLINE = False
hf_api().endpoint = f"http://127.0.0.1:{server.server_port}"

rows = [{"input_ids": torch.tensor([1, 2, 3]), "labels": torch.tensor([1, 2, 3])}] * 16
args = TrainingArguments(
    "out", max_steps=6, save_steps=3, push_to_hub=True, hub_model_id="me/model", hub_token="hf_canary",
    hub_strategy=sys.argv[2], hub_always_push=True, report_to="none", use_cpu=True, disable_tqdm=True,
)
trainer = Trainer(LlamaForCausalLM(LlamaConfig.from_pretrained(sys.argv[1])), args, train_dataset=rows)
holdfast.attach(trainer)
trainer.train()
try:
    trainer.save_model()
except Exception as error:
    print("save_model raised", type(error).__name__, flush=True)
"""


def test_a_hub_that_refuses_costs_no_checkpoint_and_is_given_no_secret(
    launcher: Launcher, tmp_path: Path, tiny: Path
) -> None:
    process = launcher.start(tiny / "model", "all_checkpoints", cwd=tmp_path, program=PUSHED)
    assert process.wait() == 0, process.output
    run = tmp_path / "out"
    assert [event["step"] for event in events(run, "saved")] == [3, 6]
    for step in (3, 6):
        assert process.output.count(f"checkpoint-{step} was NOT pushed to the hub, and is here all the same") == 2
    assert "save_model raised HfHubHTTPError" in process.output, "what is called by hand raises as ever"

    asked = [json.loads(line) for line in (tmp_path / "hub.jsonl").read_text().splitlines()]
    offered = [{file["path"] for file in request["files"]} for _, _, request in asked if "files" in request]
    assert all(authorization == "Bearer hf_canary" for authorization, *_ in asked), "it was not asked with the token"
    assert sum("model.safetensors" in paths for paths in offered) == 3
    assert sum("checkpoint-3/MANIFEST.json" in paths for paths in offered) == 1
    assert not [path for paths in offered for path in paths if path.startswith((".holdfast", "events"))]
    assert (run / "training_args.bin").exists()
    assert not [path for path in run.rglob("*") if path.is_file() and b"hf_canary" in path.read_bytes()]


WRONG = """
import holdfast, sys
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
model = LlamaForCausalLM(LlamaConfig.from_pretrained(sys.argv[1]))
trainer = Trainer(model, TrainingArguments("out", report_to="none", use_cpu=True))
try:
    holdfast.attach(trainer, keep_every=0)
except holdfast.errors.ConfigError as error:
    print(f"refused: {error}", flush=True)
"""


def test_a_rule_that_keeps_every_none_is_refused(launcher: Launcher, tmp_path: Path, tiny: Path) -> None:
    process = launcher.start(tiny / "model", cwd=tmp_path, program=WRONG)
    assert process.wait() == 0, process.output
    assert "refused: keep_every: 0 is no number of steps" in process.output
