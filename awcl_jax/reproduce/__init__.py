"""The paper's tables: methods, tasks and seeds."""
