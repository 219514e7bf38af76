"""Reads checkpoints of the layout before November 2026: other keys, layers without names."""

import torch

OLD_KEYS = {
    "labels": "label_counts",
    "fingerprint": "data_sha256",
    "position": "images_seen",
    "sums": "running_sums",
}
OLD_LAYERS = {
    "draw.0": "at_4.0",
    "draw.2": "to_7.0",
    "draw.3": "to_7.1",
    "draw.5": "to_14.0",
    "draw.6": "to_14.1",
    "draw.8": "to_28.0",
    "draw.9": "to_28.1",
    "draw.11": "to_image.0",
    "judge.1": "to_14.1",
    "judge.3": "to_7.0",
    "judge.4": "to_7.1",
    "judge.6": "to_4.0",
    "judge.7": "to_4.1",
    "judge.10": "head",
}


def upgrade(content):
    """Return a checkpoint, a dict, in today's layout; what is odd in it stays as it is."""
    content = {"data_official": None, "info": None} | content
    if isinstance(content.get("settings"), dict):
        content["settings"] = {"SIZE": 28} | content["settings"]
    if "model_args" in content:
        return content
    content = {OLD_KEYS.get(key, key): value for key, value in content.items()}
    content = {"label_counts": {}, "recipe": {}, "machine": {}} | content
    for name in ("generator", "discriminator", "generator_ema"):
        if isinstance(content.get(name), dict):
            content[name] = {rename_layer(key): value for key, value in content[name].items()}
    settings, label_counts = content.get("settings"), content["label_counts"]
    if not isinstance(settings, dict) or not isinstance(label_counts, dict):
        return content
    content["settings"] = {"LR_DECAY_START": None} | {  # a run goes on without what it had not
        "DTYPE" if key == "PRECISION" else key: value for key, value in settings.items()
    }
    rows = label_counts.get("rows")
    labels = rows.shape[1] if isinstance(rows, torch.Tensor) and rows.dim() == 2 else 0
    shared = {"channels": content.get("channels"), "labels": labels, "size": 28}
    content["model_args"] = {
        "generator": {"latent_dim": settings.get("LATENT_DIM"), "widths": (256, 128, 64, 16)},
        "discriminator": {"widths": (32, 64, 128), "texture": False},
    }
    content["model_args"]["generator"]["bilinear"] = False
    for arguments in content["model_args"].values():
        arguments |= shared
    return content


def rename_layer(key):
    """Return the name that a parameter of an old state dict has today."""
    layer, _, parameter = str(key).rpartition(".")
    return f"{OLD_LAYERS[layer]}.{parameter}" if layer in OLD_LAYERS else key
