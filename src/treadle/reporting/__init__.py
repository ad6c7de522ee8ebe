"""What a person sees of a run: console, metrics file, TensorBoard, videos, summary and the HTML report."""
