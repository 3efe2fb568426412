__version__ = "0.1.0"

import os
# Before torch loads libgomp: its threads spin while they wait, and on a machine that anything else uses too,
# each of a network's hundred small layers then waits for a descheduled spinner (measured with two threads on two
# busy cores, Yolo-Fastest at 416x256: 1,075 ms an image spinning, 107 ms sleeping).
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
