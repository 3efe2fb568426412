"""A compiled Darknet in a process of its own: it aborts, or exits, where it does not like a file.

    python darknets.py FOLDER FILE.cfg FILE.weights INPUT.npy FLOATS OUT.npy
    python darknets.py load FOLDER FILE.cfg

FOLDER holds libdarknet.so, made from AlexeyAB's sources by `make LIBSO=1`, or from hank-ai's by cmake. OUT gets the
output of the last layer. In Python: `last_layer`, `head_maps`."""
import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

DARKNETS = {'darknet': 'YOLOKIT_DARKNET', 'darknet-v5': 'YOLOKIT_DARKNET_V5'}      # target → variable with the folder


def last_layer(folder, cfg, weights, x, floats, tmp): # x: (1, C, H, W) → (floats,) or, where it stops, its last words
    "What a compiled Darknet's last layer gives."
    np.save(Path(tmp)/'x.npy', x)
    out = Path(tmp)/'y.npy'
    out.unlink(missing_ok=True)
    done = subprocess.run([sys.executable, __file__, str(folder), str(cfg), str(weights), str(Path(tmp)/'x.npy'),
                           str(floats), str(out)], capture_output=True, cwd=tmp, timeout=600)
    if done.returncode == 0: return np.load(out)
    said = (done.stdout + done.stderr).decode('utf-8', 'replace')
    words = re.search('Error message:(.*)', said)                       # hank-ai's; a backtrace follows
    return words[1] if words else said[-300:] or f'exit code {done.returncode}'


def head_maps(folder, cfg_path, weights, d, x, tmp): # d: Detector of the same cfg → list of maps, or str
    "The map before every head: the same weights under the cfg cut off there."
    from yolokit.network.weights import file_floats                     # here: main needs no torch
    lines, maps, plan = Path(cfg_path).read_text().split('\n'), [], d.cfg.plan()
    for h in d.heads:
        part = Path(tmp)/f'upto{h.index}.cfg'
        part.write_text('\n'.join(lines[:d.cfg.sections[h.index + 1].line - 1]))
        own = Path(tmp)/f'upto{h.index}.weights'                        # hank-ai's wants every float to be read
        own.write_bytes(Path(weights).read_bytes()[:20 + 4*file_floats(plan[:h.index])])
        like = plan[h.index].shape
        y = last_layer(folder, part, own, x, int(np.prod(like)), tmp)
        if isinstance(y, str): return y
        maps.append(y.reshape(1, *like))
    return maps


def load(folder, cfg, weights=''): # → library, network
    so = next(p for p in (Path(folder)/'libdarknet.so', Path(folder)/'src-lib/libdarknet.so') if p.exists())
    lib = ctypes.CDLL(str(so))
    lib.load_network_custom.restype = ctypes.c_void_p
    lib.load_network_custom.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int]
    lib.network_predict_ptr.restype = ctypes.POINTER(ctypes.c_float)
    lib.network_predict_ptr.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    return lib, lib.load_network_custom(str(cfg).encode(), str(weights).encode(), 0, 1)


def main(folder, cfg, weights, x, floats, out):
    lib, net = load(folder, cfg, weights)
    x = np.ascontiguousarray(np.load(x), np.float32)
    y = lib.network_predict_ptr(net, x.ctypes.data)
    np.save(out, np.ctypeslib.as_array(y, (int(floats),)).copy())


if __name__ == '__main__':
    load(*sys.argv[2:]) if sys.argv[1] == 'load' else main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)                         # their static objects do not like to be taken apart by Python
