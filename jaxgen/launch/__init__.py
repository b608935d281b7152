"""Training on machines that somebody else owns: what to run there, and what to do next.

`accelerator` knows what the names of TPUs mean, `tpu` composes gcloud's command lines, `life`
decides the next of them, `drive` runs them, `slurm` writes a batch script.
"""
