"""What every diffusion model has: path, prediction, denoiser, noise, grids, sampler, likelihood."""
