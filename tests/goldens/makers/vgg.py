"""VGG as a plain torch module with torchvision's array names."""

from makers._torch import Golden, seed, torch
from seeded import inputs

SIZES = {"depths": [1, 2], "widths": [4, 8], "classes": 5, "hidden": 16}


class VGG(torch.nn.Module):
    def __init__(self, depths, widths, classes, hidden, size, batch_norm):
        super().__init__()
        layers, cin = [], 3
        for depth, width in zip(depths, widths, strict=True):
            for _ in range(depth):
                layers.append(torch.nn.Conv2d(cin, width, 3, padding=1))
                if batch_norm:
                    layers.append(torch.nn.BatchNorm2d(width))
                layers.append(torch.nn.ReLU())
                cin = width
            layers.append(torch.nn.MaxPool2d(2))
        self.features = torch.nn.Sequential(*layers)
        flat = cin * (size[0] >> len(depths)) * (size[1] >> len(depths))
        linear, relu, drop = torch.nn.Linear, torch.nn.ReLU, torch.nn.Dropout
        self.classifier = torch.nn.Sequential(
            linear(flat, hidden), relu(), drop(), linear(hidden, hidden), relu(), drop(), linear(hidden, classes)
        )

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


def goldens():
    made = {}
    for name, size, batch_norm in (("vgg", (12, 20), False), ("vgg_bn", (9, 13), True)):
        module = VGG(**SIZES, size=size, batch_norm=batch_norm)
        arrays = seed(module)
        images = inputs(0, 3, *size, 3)
        output = module(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
        config = {**SIZES, "batch_norm": batch_norm, "input_shape": [*size, 3]}
        made[name] = Golden("VGGConfig", "torch", config, {}, arrays, [{"images": images, "output": output}])
    return made
