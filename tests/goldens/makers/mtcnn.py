"""The three networks of MTCNN as plain torch modules with facenet-pytorch's names."""

from makers._torch import Golden, seed, torch
from seeded import inputs

nn = torch.nn
# Stage: convolutions (features, window, window of the maximum), features of the dense layer, outputs.
NETS = {
    "proposal": (((10, 3, 2), (16, 3, 0), (32, 3, 0)), None, (2, 4), (15, 22)),
    "refinement": (((28, 3, 3), (48, 3, 3), (64, 2, 0)), (576, 128), (2, 4), (24, 24)),
    "output": (((32, 3, 3), (64, 3, 3), (64, 3, 2), (128, 2, 0)), (1152, 256), (2, 4, 10), (48, 48)),
}
OUTPUTS = ("logits", "boxes", "points")


class Net(nn.Module):
    def __init__(self, convs, hidden, heads):
        super().__init__()
        cin = 3
        for i, (features, window, _) in enumerate(convs, 1):
            setattr(self, f"conv{i}", nn.Conv2d(cin, features, window))
            setattr(self, f"prelu{i}", nn.PReLU(features))
            cin = features
        self.convs, self.last, self.heads = convs, len(convs) + 1, len(heads)
        self.dense = hidden is not None
        if self.dense:
            setattr(self, f"dense{self.last}", nn.Linear(*hidden))
            setattr(self, f"prelu{self.last}", nn.PReLU(hidden[1]))
        for i, units in enumerate(heads, 1):
            head = nn.Linear(hidden[1], units) if self.dense else nn.Conv2d(cin, units, 1)
            setattr(self, f"dense{self.last + 1}_{i}" if self.dense else f"conv{self.last}_{i}", head)

    def part(self, name):
        return getattr(self, name)

    def forward(self, x):
        for i, (_, _, pool) in enumerate(self.convs, 1):
            x = self.part(f"prelu{i}")(self.part(f"conv{i}")(x))
            x = nn.functional.max_pool2d(x, pool, 2, ceil_mode=True) if pool else x
        if self.dense:
            x = x.permute(0, 3, 2, 1).flatten(1)
            x = self.part(f"prelu{self.last}")(self.part(f"dense{self.last}")(x))
            return [self.part(f"dense{self.last + 1}_{i + 1}")(x) for i in range(self.heads)]
        return [self.part(f"conv{self.last}_{i + 1}")(x).permute(0, 2, 3, 1) for i in range(self.heads)]


def goldens():
    made = {}
    for stage, (convs, hidden, heads, size) in NETS.items():
        module = Net(convs, hidden, heads)
        arrays = seed(module)
        images = inputs(0, 1, *size, 3)
        said = module(torch.from_numpy(images).permute(0, 3, 1, 2))
        case = {"images": images, **{name: a.numpy() for name, a in zip(OUTPUTS, said, strict=False)}}
        made[f"mtcnn_{stage}"] = Golden("MTCNNConfig", "torch", {"stage": stage}, {}, arrays, [case])
    return made
