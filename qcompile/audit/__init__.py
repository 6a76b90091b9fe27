"""What is found out about an emitted file: facts of the plan, kernels, agreement and speed, accuracy."""
