"""ResNet: Hugging Face's, and plain torch modules with torchvision's names and those of the CIFAR models."""

from makers._torch import Golden, seed, torch
from seeded import inputs
from transformers import ResNetConfig, ResNetForImageClassification

nn = torch.nn


class Block(nn.Module):
    """Basic with two convolutions, a bottleneck with three; `past` is the module that passes by."""

    def __init__(self, cin, narrow, cout, stride, bottleneck, past, name):
        super().__init__()
        parts = ((narrow, 1, 1), (narrow, 3, stride), (cout, 1, 1)) if bottleneck else ((cout, 3, stride), (cout, 3, 1))
        self.count, self.past = len(parts), name
        for i, (features, window, step) in enumerate(parts, 1):
            setattr(self, f"conv{i}", nn.Conv2d(cin, features, window, step, window // 2, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(features))
            cin = features
        setattr(self, name, past)

    def forward(self, x):
        y = x
        for i in range(1, self.count + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = torch.relu(y) if i < self.count else y
        return torch.relu(y + getattr(self, self.past)(x))


class Thinned(nn.Module):
    def __init__(self, more):
        super().__init__()
        self.more = more

    def forward(self, x):
        return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more // 2, self.more // 2))


class ResNet(nn.Module):
    def __init__(self, depths, widths, classes, block, stem, shortcut):
        super().__init__()
        large, deep = stem == "imagenet", block == "bottleneck"
        cin = widths[0] // (4 if deep else 1)
        window, stride = (7, 2) if large else (3, 1)
        self.conv1 = nn.Conv2d(3, cin, window, stride, window // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(cin)
        self.pool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        self.stages = []
        for i, (depth, width) in enumerate(zip(depths, widths, strict=True), 1):
            blocks = []
            for j in range(depth):
                stride = 2 if i > 1 and j == 0 else 1
                past = nn.Sequential()
                if stride > 1 or cin != width:
                    past = Thinned(width - cin)
                    if shortcut == "projection":
                        past = nn.Sequential(nn.Conv2d(cin, width, 1, stride, bias=False), nn.BatchNorm2d(width))
                blocks.append(Block(cin, width // 4, width, stride, deep, past, "downsample" if large else "shortcut"))
                cin = width
            setattr(self, f"layer{i}", nn.Sequential(*blocks))
            self.stages.append(f"layer{i}")
        self.head = "fc" if large else "linear"
        setattr(self, self.head, nn.Linear(cin, classes))

    def forward(self, x):
        x = self.pool(torch.relu(self.bn1(self.conv1(x))))
        for name in self.stages:
            x = getattr(self, name)(x)
        return getattr(self, self.head)(x.mean((2, 3)))


TORCH = {
    "resnet_torch_bottleneck": ([2, 1, 1], [8, 16, 24], "bottleneck", "imagenet", "projection"),
    "resnet_torch_basic": ([1, 2], [4, 6], "basic", "imagenet", "projection"),
    "resnet_cifar_a": ([2, 1, 1], [4, 8, 16], "basic", "cifar", "padding"),
    "resnet_cifar_b": ([1, 2], [4, 8], "basic", "cifar", "projection"),
}
HUGGINGFACE = {
    "resnet_hf_bottleneck": {"embedding_size": 6, "hidden_sizes": [8, 16], "depths": [2, 1]},
    "resnet_hf_basic": {
        "embedding_size": 4,
        "hidden_sizes": [4, 8],
        "depths": [1, 2],
        "layer_type": "basic",
        "downsample_in_first_stage": True,
        "num_channels": 1,
    },
    "resnet_hf_early": {
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "embedding_size": 4,
        "downsample_in_bottleneck": True,
    },
}


def cases(module, channels):
    for i, (rows, size) in enumerate(((2, (13, 21)), (1, (16, 16)))):
        images = inputs(i, rows, *size, channels)
        yield {"images": images, "output": module(torch.from_numpy(images).permute(0, 3, 1, 2))}


def goldens():
    made = {}
    for name, (depths, widths, block, stem, shortcut) in TORCH.items():
        sizes = {"depths": depths, "widths": widths, "classes": 5, "block": block, "stem": stem, "shortcut": shortcut}
        module = ResNet(**sizes)
        arrays = seed(module)
        made[name] = Golden("ResNetConfig", "torch", sizes, {}, arrays, _numpy(cases(module, 3)))
    for name, sizes in HUGGINGFACE.items():
        config = ResNetConfig(**sizes, num_labels=5)
        module = ResNetForImageClassification(config)
        arrays = seed(module)
        told = {key: value for key, value in config.to_dict().items() if key in {*sizes, "id2label", "layer_type"}}
        made[name] = Golden(
            "ResNetConfig", "huggingface", told, {}, arrays, _numpy(cases(module, sizes.get("num_channels", 3)))
        )
    return made


def _numpy(found):
    return [{**case, "output": getattr(case["output"], "logits", case["output"]).numpy()} for case in found]
