"""MobileNetV2: Hugging Face's, and a plain torch module with torchvision's names; the small CNN in plain torch."""

from makers._torch import Golden, seed, torch
from seeded import inputs
from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

nn = torch.nn


def part(cin, cout, window, stride=1, groups=1):
    conv = nn.Conv2d(cin, cout, window, stride, window // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(cout), nn.ReLU6())


class Block(nn.Module):
    def __init__(self, cin, expansion, cout, stride):
        super().__init__()
        middle = cin * expansion
        self.conv = nn.Sequential(
            *([part(cin, middle, 1)] if expansion > 1 else []),
            part(middle, middle, 3, stride, middle),
            nn.Conv2d(middle, cout, 1, bias=False),
            nn.BatchNorm2d(cout),
        )
        self.residual = stride == 1 and cin == cout

    def forward(self, x):
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    def __init__(self, classes, stages, stem_width, last_width):
        super().__init__()
        layers, cin = [part(3, stem_width, 3, 2)], stem_width
        for expansion, width, blocks, stride in stages:
            for i in range(blocks):
                layers.append(Block(cin, expansion, width, 1 if i else stride))
                cin = width
        self.features = nn.Sequential(*layers, part(cin, last_width, 1))
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(last_width, classes))

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


class CNN(nn.Module):
    def __init__(self):
        super().__init__()
        conv, pool, relu = nn.Conv2d, nn.MaxPool2d, nn.ReLU
        self.features = nn.Sequential(conv(2, 4, 3), relu(), pool(2), conv(4, 6, 3), relu(), pool(2))
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(6 * 2 * 3, 8), relu(), nn.Linear(8, 5))

    def forward(self, x):
        return self.classifier(self.features(x))


def golden(module, kind, source, config, sizes, channels, options=None):
    arrays = seed(module)
    cases = []
    for i, size in enumerate(sizes):
        images = inputs(i, 2, *size, channels)
        output = module(torch.from_numpy(images).permute(0, 3, 1, 2))
        cases.append({"images": images, "output": getattr(output, "logits", output).numpy()})
    return Golden(kind, source, config, options or {}, arrays, cases)


def goldens():
    told = {"classes": 5, "stages": [[1, 8, 1, 1], [3, 16, 2, 2], [2, 24, 1, 2]], "stem_width": 8, "last_width": 32}
    made = {
        "mobilenet_torch": golden(
            MobileNetV2(**told), "MobileNetV2Config", "torch", told, [(17, 22), (16, 16)], 3, {"dropout": 0.0}
        ),
        "cnn": golden(
            CNN(),
            "CNNConfig",
            "torch",
            {"widths": [4, 6], "hidden": [8], "classes": 5, "input_shape": [15, 18, 2]},
            [(15, 18)],
            2,
        ),
    }
    for name, tf_padding in (("mobilenet_hf_same", True), ("mobilenet_hf", False)):
        sizes = {"depth_multiplier": 0.35, "tf_padding": tf_padding, "layer_norm_eps": 0.01}
        config = MobileNetV2Config(**sizes, num_labels=5)
        told = {**sizes, "id2label": {str(i): label for i, label in config.id2label.items()}}
        module = MobileNetV2ForImageClassification(config)
        made[name] = golden(module, "MobileNetV2Config", "huggingface", told, [(35, 22)], 3)
    return made
