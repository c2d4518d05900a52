"""Only what is served is imported of diffusers, and all of it stays importable. In a process of its own."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[4]

CODE = """
import sys
import deployments.engine.worker.engine_worker

others = "transformers.transformer_flux", "unets.unet_3d_condition", "autoencoders.vq_model"
assert [name for name in others if f"diffusers.models.{name}" in sys.modules] == []
assert {"cv2", "scipy.stats.distributions"}.isdisjoint(sys.modules)

import scipy.stats
from diffusers import EulerDiscreteScheduler
scheduler = EulerDiscreteScheduler(use_beta_sigmas=True)
scheduler.set_timesteps(4)
assert scheduler.sigmas[0] > scheduler.sigmas[1] > scheduler.sigmas[2]
assert scipy.stats.beta.ppf(0.5, 0.6, 0.6) > 0.49

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel as by_module
import diffusers.models.autoencoders as autoencoders
import diffusers.models.unets as unets
from diffusers import FluxTransformer2DModel
from diffusers.models.transformers import FluxTransformer2DModel as from_package
from diffusers.models.unets import UNet2DConditionModel, UNet3DConditionModel

assert by_module is UNet2DConditionModel
assert FluxTransformer2DModel is from_package
assert UNet3DConditionModel.__module__ == "diffusers.models.unets.unet_3d_condition"
assert autoencoders.VQModel.__name__ == "VQModel"
assert not hasattr(unets, "nothing_of_this_name")
"""


def test_the_engine_imports_no_network_that_it_does_not_serve_and_others_can() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
