"""Test files that take more than about three seconds of processor time each: `make quick` leaves them out."""

from typing import Final

LONG: Final = frozenset(
    {
        "autodiff/test_rules.py",
        "ir/test_opsets.py",
        "passes/test_correct_bias.py",
        "passes/test_float_where_inexact.py",
        "passes/test_fuse_regions.py",
        "passes/test_partition_units.py",
        "passes/test_reconstruct.py",
        "passes/test_score_losses.py",
        "passes/test_unit_properties.py",
        "reporting/test_plot.py",
        "reporting/test_summary.py",
        "simulation/test_fake_quant.py",
        "test_accuracy.py",
        "test_api.py",
        "test_cli.py",
        "test_cli_errors.py",
        "test_docs.py",
        "test_models.py",
        "test_packaging.py",
        "test_random_graphs.py",
        "test_streams.py",
        "test_tools.py",
        "training/test_borders.py",
        "training/test_ort_training.py",
        "training/test_reconstruction.py",
        "training/test_region.py",
        "training/test_resume.py",
        "training/test_transformers.py",
        "training/test_work_dir.py",
    }
)
