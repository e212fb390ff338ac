"""The paper's experiments and what came after it, small enough to run on a laptop.

python -m benchmarks.experiments list
python -m benchmarks.experiments lenet --full
"""
