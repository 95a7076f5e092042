"""An image classifier with timm: its model, optimizer, schedule, augmentation, mixup and average of the weights.

    pip install '.[examples]'
    python examples/timm_loop.py [RUN] [--steps N]

The images are random, so nothing is downloaded. The lines that make it a run that can be saved and resumed at any
moment end in `# holdfast`.
"""

import argparse

from timm import create_model
from timm.data import Mixup, create_transform
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, random_seed
from torch.utils.data import DataLoader
from torchvision.datasets import FakeData

from holdfast import Checkpointer  # holdfast

CLASSES, SIZE, BATCH = 4, 32, 8

parser = argparse.ArgumentParser()
parser.add_argument("run", nargs="?", default="outputs/timm")
parser.add_argument("--steps", type=int, default=200)
asked = parser.parse_args()

random_seed(42)
transform = create_transform(SIZE, is_training=True, auto_augment="rand-m5-n1")
data = FakeData(60, (3, SIZE, SIZE), CLASSES, transform=transform)
loader = DataLoader(data, batch_size=BATCH, shuffle=True, drop_last=True)
model = create_model("resnet10t", num_classes=CLASSES, drop_rate=0.1)
ema = ModelEmaV3(model, decay=0.99)
optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
scheduler, _ = create_scheduler_v2(optimizer, num_epochs=30, warmup_epochs=1, updates_per_epoch=len(loader))
mixup = Mixup(mixup_alpha=0.2, num_classes=CLASSES)
criterion = SoftTargetCrossEntropy()

ckpt = Checkpointer(asked.run, model=model, optimizer=optimizer, schedule=scheduler, ema=ema, data=loader)  # holdfast
with ckpt:  # holdfast
    for images, labels in ckpt.batches(until=asked.steps):  # holdfast
        images, labels = mixup(images, labels)
        loss = criterion(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update(model, step=ckpt.step_count)
        scheduler.step_update(ckpt.step_count + 1)
        ckpt.step(loss=loss)  # holdfast
        if ckpt.step_count % 20 == 0:
            print(f"step {ckpt.step_count}: loss {loss.item():.3f}")
