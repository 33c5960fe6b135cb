"""Makes features.npz and metrics.json beside this file from the programs that ours are held to.

    pip install -e ".[parity]" torch torchvision
    python -m tests.golden.evaluate.make_golden

The weights are random ones of tests/evaluate/golden_inputs.py; no trained weights and no photographs are used. Made
on a CPU with torch 2.13.0, torchvision 0.28.0, torch-fidelity 0.4.0, pytorch-fid 0.3.0, clean-fid 0.1.35, prdc 0.2,
vendi-score 0.0.3 and efficientnet-lite-pytorch 0.1.0.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from cleanfid.resize import make_resizer
from efficientnet_lite_pytorch import EfficientNet
from prdc import compute_prdc
from pytorch_fid import inception as pytorch_fid
from pytorch_fid.fid_score import calculate_frechet_distance
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from vendi_score import vendi

from kaleido_jax.evaluate.features.efficientnet import efficientnet_lite0
from kaleido_jax.evaluate.features.inception import inception_v3
from kaleido_jax.evaluate.features.network import expected_shapes
from tests.evaluate import golden_inputs

HERE = Path(__file__).parent


def channels_first(images):
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32))


def torch_fidelity_inception():
    """torch-fidelity's network with random weights; the classifier's are not used."""
    shapes = expected_shapes(inception_v3) | {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
    tensors = {name: torch.from_numpy(array) for name, array in golden_inputs.random_tensors(shapes).items()}
    tensors |= {
        f"{name.removesuffix('.running_var')}.num_batches_tracked": torch.tensor(0)
        for name in shapes
        if name.endswith("running_var")
    }
    with tempfile.TemporaryDirectory() as folder:
        torch.save(tensors, Path(folder) / "inception.pth")
        return FeatureExtractorInceptionV3("inception", ["2048"], str(Path(folder) / "inception.pth"))


def pytorch_fid_inception(state):
    """pytorch-fid's network with the same weights."""
    pytorch_fid.load_state_dict_from_url = lambda *_, **__: state
    return pytorch_fid.InceptionV3().eval()


def efficientnet():
    net = EfficientNet.from_name("efficientnet-lite0").eval()
    shapes = expected_shapes(efficientnet_lite0) | {"_fc.weight": (1000, 1280), "_fc.bias": (1000,)}
    tensors = {name: torch.from_numpy(array) for name, array in golden_inputs.random_tensors(shapes).items()}
    missing = net.load_state_dict(tensors, strict=False)
    assert not missing.unexpected_keys and all("num_batches" in key for key in missing.missing_keys)
    return net


def features():
    """Networks on images, and the three ways of resizing."""
    pixels = golden_inputs.images(2, 40, 48)
    ours = torch_fidelity_inception()
    theirs = pytorch_fid_inception(ours.state_dict())
    lite = golden_inputs.images(2, 64, 64)
    net = efficientnet()
    found = {
        "inception_torch_fidelity": ours(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))[0].numpy(),
        "inception_pytorch_fid": theirs(channels_first(pixels) / 255)[0][:, :, 0, 0].numpy(),
        "efficientnet": net.extract_features((channels_first(lite) - 127) / 128).mean((2, 3)).numpy(),
        "efficientnet_logits": net((channels_first(lite) - 127) / 128).numpy(),
    }
    for old, new in golden_inputs.RESIZES:
        image = golden_inputs.images(1, old, old + 3)
        first = channels_first(image)
        size = (new, new)
        resized = {
            "torch-fidelity": interpolate_bilinear_2d_like_tensorflow1x(first, size=size, align_corners=False),
            "pytorch-fid": F.interpolate(first, size=size, mode="bilinear", align_corners=False),
        }
        for rule, x in resized.items():
            found[f"{rule} {old} {new}"] = x[0].numpy().transpose(1, 2, 0).astype(np.float32)
        found[f"clean-fid {old} {new}"] = make_resizer("PIL", False, "bicubic", size)(image[0])
    return found


def metrics():
    found = {}
    for name in golden_inputs.SETS:
        real, fake = golden_inputs.features(name)
        as_torch = [torch.from_numpy(x) for x in (fake, real)]  # torch-fidelity: the generated ones first
        smallest = min(map(len, (real, fake)))
        cut = [x[:smallest].double() for x in as_torch]
        statistics = [fid_features_to_statistics(x) for x in as_torch]
        moments = [x for s in statistics for x in (s["mu"].astype(np.float64), s["sigma"])]
        prc = prc_features_to_metric(*as_torch, prc_neighborhood=golden_inputs.NEAREST, verbose=False)
        kid = kid_features_to_metric(*cut, kid_subsets=1, kid_subset_size=smallest, verbose=False)
        found[name] = {
            "torch-fidelity": {
                "frechet": fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"],
                "precision": prc["precision"],
                "recall": prc["recall"],
                "kid_of_equal_sets": kid["kernel_inception_distance_mean"],
            },
            "pytorch-fid": {"frechet": float(calculate_frechet_distance(*moments))},
            "prdc": {key: float(value) for key, value in compute_prdc(real, fake, golden_inputs.NEAREST).items()},
            "vendi-score": {
                "vendi": float(vendi.score_X(fake.astype(np.float64))),
                "vendi_dual": float(vendi.score_dual(fake.astype(np.float64))),
            },
        }
    return found


def main():
    torch.set_num_threads(1)
    with torch.no_grad():
        np.savez_compressed(HERE / "features.npz", **features())
    (HERE / "metrics.json").write_text(json.dumps(metrics(), indent=2) + "\n")


if __name__ == "__main__":
    main()
