"""U-Net as a plain torch module with the names of Pytorch-UNet (milesial)."""

from makers._torch import Golden, seed, torch
from seeded import inputs

nn = torch.nn
SIZES = {"widths": [4, 6, 8], "classes": 2}


class Double(nn.Module):
    def __init__(self, cin, cout):
        super().__init__()
        self.double_conv = nn.Sequential(
            nn.Conv2d(cin, cout, 3, padding=1, bias=False), nn.BatchNorm2d(cout), nn.ReLU(),
            nn.Conv2d(cout, cout, 3, padding=1, bias=False), nn.BatchNorm2d(cout), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x):
        return self.double_conv(x)


class Down(nn.Module):
    def __init__(self, cin, cout):
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), Double(cin, cout))

    def forward(self, x):
        return self.maxpool_conv(x)


class Up(nn.Module):
    def __init__(self, cin, cout):
        super().__init__()
        self.up = nn.ConvTranspose2d(cin, cout, 2, 2)
        self.conv = Double(2 * cout, cout)

    def forward(self, x, fine):
        x = self.up(x)
        height, width = (n - m for n, m in zip(fine.shape[2:], x.shape[2:], strict=True))
        x = nn.functional.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        return self.conv(torch.cat([fine, x], 1))


class Out(nn.Module):
    def __init__(self, cin, cout):
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, 1)

    def forward(self, x):
        return self.conv(x)


class UNet(nn.Module):
    def __init__(self, widths, classes):
        super().__init__()
        self.count = len(widths) - 1
        self.inc = Double(3, widths[0])
        for i in range(self.count):
            setattr(self, f"down{i + 1}", Down(widths[i], widths[i + 1]))
            setattr(self, f"up{self.count - i}", Up(widths[i + 1], widths[i]))
        self.outc = Out(widths[0], classes)

    def forward(self, x):
        seen = [self.inc(x)]
        for i in range(self.count):
            seen.append(getattr(self, f"down{i + 1}")(seen[-1]))
        x = seen.pop()
        for i in range(self.count):
            x = getattr(self, f"up{i + 1}")(x, seen.pop())
        return self.outc(x)


def goldens():
    module = UNet(**SIZES)
    arrays = seed(module)
    cases = []
    for i, size in enumerate(((13, 18), (8, 8))):
        images = inputs(i, 2, *size, 3)
        output = module(torch.from_numpy(images).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        cases.append({"images": images, "output": output.numpy()})
    return {"unet": Golden("UNetConfig", "torch", SIZES, {}, arrays, cases)}
