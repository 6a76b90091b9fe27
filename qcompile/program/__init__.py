"""From graph and plan to a program: the activation DAG, operator forms, lowering."""
