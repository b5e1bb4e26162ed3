"""A page in the browser: drop a video, choose the canvas, outpaint, compare and download."""
