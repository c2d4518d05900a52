"""Schedulers as checkpoints bring them: those that are compared with diffusers', and those that are refused."""

from typing import Any, Final

import numpy as np

BETAS: Final = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
"""What all of them have: the training of Stable Diffusion."""

SERVED: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("DPMSolverMultistepScheduler", {"steps_offset": 1, "use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3, "euler_at_final": True, "timestep_spacing": "trailing"}),
    ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}),
    ("DPMSolverMultistepScheduler", {"use_exponential_sigmas": True, "prediction_type": "sample"}),
    ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}),
    ("DPMSolverMultistepScheduler", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}),
    ("DPMSolverSinglestepScheduler", {"lower_order_final": True, "solver_order": 3}),
    ("UniPCMultistepScheduler", {"solver_order": 3, "use_karras_sigmas": True, "timestep_spacing": "trailing"}),
    ("UniPCMultistepScheduler", {"disable_corrector": [0, 1], "use_beta_sigmas": True}),
    ("DEISMultistepScheduler", {"solver_order": 3, "prediction_type": "v_prediction"}),
    ("EulerDiscreteScheduler", {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}),
    ("EulerDiscreteScheduler", {"interpolation_type": "log_linear", "final_sigmas_type": "sigma_min"}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "timestep_type": "continuous", "sigma_min": 0.1}),
    ("EulerAncestralDiscreteScheduler", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}),
    ("HeunDiscreteScheduler", {"use_karras_sigmas": True}),
    ("LMSDiscreteScheduler", {"use_karras_sigmas": True, "timestep_spacing": "leading"}),
    ("KDPM2AncestralDiscreteScheduler", {}),
    ("DDPMScheduler", {"clip_sample": False, "variance_type": "fixed_large", "timestep_spacing": "trailing"}),
    (
        "DDIMScheduler",
        {"clip_sample": False, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    ),
    ("DDIMScheduler", {"clip_sample": False, "prediction_type": "sample", "set_alpha_to_one": False}),
    ("DDIMScheduler", {"clip_sample": False, "trained_betas": np.linspace(1e-4, 2e-2, 1000).tolist()}),
    ("DDIMScheduler", {"clip_sample": False, "num_train_timesteps": 500, "beta_schedule": "squaredcos_cap_v2"}),
    ("PNDMScheduler", {"skip_prk_steps": True, "timestep_spacing": "trailing", "set_alpha_to_one": True}),
    ("LCMScheduler", {"original_inference_steps": 100, "timestep_scaling": 1.0}),
    ("TCDScheduler", {}),
    ("EDMEulerScheduler", {"sigma_schedule": "exponential"}),
    ("EDMDPMSolverMultistepScheduler", {}),
    ("CMStochasticIterativeScheduler", {"clip_denoised": False}),
    ("IPNDMScheduler", {}),
)

REFUSED: Final[tuple[tuple[str, dict[str, Any], str], ...]] = (
    ("DDIMScheduler", {"thresholding": True}, "`thresholding`"),
    ("DPMSolverMultistepScheduler", {"thresholding": True, "sample_max_value": 500.0}, "`thresholding`"),
    ("DDIMScheduler", {"prediction_type": "rectified"}, "`prediction_type`"),
    ("PNDMScheduler", {"skip_prk_steps": True, "prediction_type": "sample"}, "`prediction_type`"),
    ("PNDMScheduler", {}, "`skip_prk_steps`"),
    ("DDIMScheduler", {"beta_schedule": "unheard_of"}, "`beta_schedule`"),
    ("DDPMScheduler", {"variance_type": "learned_range"}, "`variance_type`"),
    ("CMStochasticIterativeScheduler", {}, "`clip_denoised`"),
    ("UniPCMultistepScheduler", {"solver_order": 4}, "`solver_order`"),
    ("SASolverScheduler", {}, "SASolverScheduler"),
    ("FlowMatchEulerDiscreteScheduler", {}, "FlowMatchEulerDiscreteScheduler"),
    ("UnCLIPScheduler", {}, "UnCLIPScheduler"),
    ("MyOwnScheduler", {}, "MyOwnScheduler"),
)
