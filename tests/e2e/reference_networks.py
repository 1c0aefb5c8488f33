"""The networks of the reference as REFERENCE.md words them: plain functions over a dict of weights.

Slow and literal, written without a look at our networks; see reference.py.
"""

import torch
import torch.nn.functional as F


class Weights(dict):
    """Parameters by key; ``w / "encoder."`` are those below a prefix, under the rest of their key."""

    def __truediv__(self, prefix):
        return Weights({key.removeprefix(prefix): value for key, value in self.items() if key.startswith(prefix)})

    def numbers(self, prefix):
        return sorted({int(key.removeprefix(prefix).split(".")[0]) for key in self if key.startswith(prefix)})


def trainable(arrays, double=False):
    """Tensors that take gradients; statistics and counters do not."""
    made = Weights()
    for key, value in arrays.items():
        tensor = torch.tensor(value)
        if tensor.is_floating_point():
            tensor = tensor.double() if double else tensor
            tensor.requires_grad_("running" not in key)
        made[key] = tensor
    return made


def conv(w, name, x, **how):
    weight = w[f"{name}.weight"]
    layer = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[weight.ndim]
    return layer(x, weight, w.get(f"{name}.bias"), **how)


def group_norm(w, name, x):
    return F.group_norm(x, 32, w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)


def batch_norm(w, name, x, train=True):
    running = (None, None) if train else (w[f"{name}.running_mean"], w[f"{name}.running_var"])
    return F.batch_norm(x, *running, w[f"{name}.weight"], w[f"{name}.bias"], train)


def norm3d(w, name, x, norm="batch", train=True):
    if norm == "batch":
        return batch_norm(w, name, x, train)
    return F.instance_norm(x) if norm == "instance" else x


def res_block(w, x):
    h = conv(w, "conv1", F.silu(group_norm(w, "norm1", x)), padding=1)
    h = conv(w, "conv2", F.silu(group_norm(w, "norm2", h)), padding=1)
    return h + (conv(w, "nin_shortcut", x) if "nin_shortcut.weight" in w else x)


def attention(w, x):
    h = group_norm(w, "norm", x)
    q, k, v = (conv(w, name, h).flatten(2) for name in "qkv")
    shares = torch.softmax(torch.einsum("ncq,nck->nqk", q, k) / x.shape[1] ** 0.5, dim=2)
    return x + conv(w, "proj_out", torch.einsum("nqk,nck->ncq", shares, v).reshape(x.shape))


def middle(w, x):
    return res_block(w / "block_2.", attention(w / "attn_1.", res_block(w / "block_1.", x)))


def encoder(w, x):
    """h, and the outputs of the four levels."""
    h, levels = conv(w, "conv_in", x, padding=1), []
    for level in range(4):
        h = res_block(w / f"down.{level}.block.0.", h)
        levels.append(h)
        if level < 3:
            h = conv(w, f"down.{level}.downsample.conv", F.pad(h, (0, 1, 0, 1)), stride=2)
    h = F.silu(group_norm(w, "norm_out", middle(w / "mid.", h)))
    return conv(w, "conv_out", h, padding=1), levels


def decoder(w, z):
    h = middle(w / "mid.", conv(w, "conv_in", z, padding=1))
    for level in reversed(range(4)):
        for block in range(2):
            h = res_block(w / f"up.{level}.block.{block}.", h)
        if level:
            h = conv(w, f"up.{level}.upsample.conv", h.repeat_interleave(2, 2).repeat_interleave(2, 3), padding=1)
    return conv(w, "conv_out", F.silu(group_norm(w, "norm_out", h)), padding=1)


def quantise(codebook, z, legacy=True):
    """Straight-through value, loss and indices of vectors along axis 1."""
    rows = z.movedim(1, -1).reshape(-1, z.shape[1])
    indices = ((rows[:, None] - codebook[None]) ** 2).sum(2).argmin(1)
    chosen = codebook[indices].reshape(z.movedim(1, -1).shape).movedim(-1, 1)
    to_codes, to_z = ((chosen.detach() - z) ** 2).mean(), ((chosen - z.detach()) ** 2).mean()
    loss = to_codes + 0.25 * to_z if legacy else 0.25 * to_codes + to_z
    return z + (chosen - z).detach(), loss, indices


def ed023e(w, h, norm="batch", train=True):
    """The decoding half."""
    for stage, pair in (("up3", "conv5"), ("up2", "conv6"), ("up1", None)):
        h = F.conv_transpose3d(h, w[f"{stage}.0.weight"], w[f"{stage}.0.bias"], stride=2, padding=1)
        h = F.relu(norm3d(w, f"{stage}.1", h, norm, train))
        for index in (0, 2) if pair else ():
            h = F.relu(norm3d(w, f"{pair}.{index}.1", conv(w, f"{pair}.{index}.0", h, padding=1), norm, train))
    return torch.tanh(conv(w, "conv7_k.0.0", h, padding=1))


def along_some_axes(w, name, x):
    """A convolution along Z for every (x, y), over (X, Z) for every y, or over all three axes: its weight says which."""
    batch, _, nx, ny, nz = x.shape
    rank = w[f"{name}.weight"].ndim
    if rank == 3:
        rows = x.permute(0, 2, 3, 1, 4).reshape(batch * nx * ny, -1, nz)
        return conv(w, name, rows, padding=1).reshape(batch, nx, ny, -1, nz).permute(0, 3, 1, 2, 4)
    if rank == 4:
        return torch.stack([conv(w, name, x[:, :, :, y], padding=1) for y in range(ny)], dim=3)
    return conv(w, name, x, padding=1)


def unet_stage(w, stage, x, norm="batch"):
    for index in w.numbers(f"{stage}."):
        x = along_some_axes(w, f"{stage}.{index}.conv", x)
        normalised = not (stage == "down0" and index == 0) and stage != "conv7_k"
        x = norm3d(w, f"{stage}.{index}.norm", x, norm) if normalised else x
        x = torch.tanh(x) if stage == "conv7_k" else F.relu(x)
    return x


def unet_encode(w, x, norm="batch"):
    features = [unet_stage(w, "down0", x, norm)]
    for stage in ("down1", "down2", "down3"):
        features.append(unet_stage(w, stage, F.max_pool3d(features[-1], 2), norm))
    return features


def unet_decode(w, features, norm="batch"):
    h = features[3]
    for up, after, skip in (("up3", "conv5", 2), ("up2", "conv6", 1), ("up1", "conv7_k", 0)):
        for axis in (2, 3, 4):
            h = h.repeat_interleave(2, axis)
        h = F.relu(norm3d(w, f"{up}.norm", along_some_axes(w, f"{up}.conv", h), norm))
        h = unet_stage(w, after, torch.cat([h, features[skip]], 1), norm)
    return h


def plane_critic(w, x):
    """patch_16, patch_8 or patch_4."""
    numbers = w.numbers("model.")
    for number in numbers[:-1]:
        x = conv(w, f"model.{number}", x, stride=2, padding=1)
        x = F.leaky_relu(x if number == 0 else F.instance_norm(x), 0.2)
    return conv(w, f"model.{numbers[-1]}", F.pad(x, (1, 0, 1, 0)), padding=1)


def slice_critic(w, x):
    """The autoencoder's discriminator in training mode."""
    x = F.leaky_relu(conv(w, "main.0", x, stride=2, padding=1), 0.2)
    for number, stride in ((2, 2), (5, 2), (8, 1)):
        x = conv(w, f"main.{number}", x, stride=stride, padding=1)
        x = F.leaky_relu(batch_norm(w, f"main.{number + 1}", x), 0.2)
    return conv(w, "main.11", x, padding=1)
