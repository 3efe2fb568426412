"Checkpoints of others: what they mean, and what the hostile ones do not do; .weights for every section that holds weights."
import io, os, pickle, pickletools, re, struct, subprocess, sys, types, warnings, zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from yolokit import pickles, zoo
from yolokit.cfg import Cfg
from yolokit.model import Detector, state_hash
from yolokit.weights import WeightsError, layout, load_checkpoint, read_weights, transfer, write_weights

# ---- pickles put together by hand: names are text, pieces of program are bytes

def name(text): module, _, attr = text.rpartition('.'); return f'c{module}\n{attr}\n'.encode()
def value(x): return pickletools.optimize(pickle.dumps(x, 2))[2:-1]     # without PROTO and STOP
def raw(b): return b'B' + struct.pack('<I', len(b)) + b                # a bytes object
def code(x): return x if isinstance(x, bytes) else value(x)
def call(fn, *args): return (name(fn) if isinstance(fn, str) else fn) + b'(' + b''.join(map(code, args)) + b'tR'
def attr(thing, n): return call('builtins.getattr', thing, n)
def program(body): return b'\x80\x02' + body + b'.'
def stack_global(module, n): return value(module) + value(n) + b'\x93'


HABITS = {'protocol_version': 1001, 'little_endian': True, 'type_sizes': {'short': 2, 'int': 4, 'long': 4}}
def legacy(body, keys=(), tail=b'', magic=pickles.MAGIC, habits=HABITS): # torch before 1.6
    return b''.join(pickle.dumps(x, 2) for x in (magic, 1001, habits)) + body + pickle.dumps(list(keys), 2) + tail


def attacks(c: str) -> dict: # c: the file that the attack makes → what it is called: its pickle
    "Each of these makes a file when `pickle.load` reads it."
    sh, py, system, path = f'touch {c}', f"open({c!r}, 'w').close()", name('posix.system'), call('pathlib.PosixPath', c)
    inner = raw(program(call('posix.system', sh)))
    imported = lambda m: call('importlib.import_module', m)
    simple = {'posix.system': (sh,), 'os.system': (sh,), 'subprocess.call': (['touch', c],), 'subprocess.run': (['touch', c],), 'subprocess.check_output': (['touch', c],),
              'subprocess.getoutput': (sh,), 'os.mkdir': (c,), 'os.makedirs': (c,), 'os.symlink': ('/', c), 'os.open': (c, os.O_CREAT | os.O_WRONLY), 'os.mkfifo': (c,),
              'os.spawnlp': (os.P_WAIT, 'touch', 'touch', c), 'builtins.eval': (py,), 'builtins.exec': (py,), '__builtin__.eval': (py,), 'builtins.open': (c, 'w'), 'io.open': (c, 'w'),
              '_io.FileIO': (c, 'w'), 'codecs.open': (c, 'w'), 'logging.FileHandler': (c,), 'sqlite3.connect': (c,), 'zipfile.ZipFile': (c, 'w'), 'tarfile.open': (c, 'w'), 'gzip.open': (c, 'wb'),
              'bz2.open': (c, 'wb'), 'lzma.open': (c, 'wb'), 'shutil.copyfile': ('/dev/null', c), 'shutil.copytree': (c + '.dir', c), 'numpy.memmap': (c, 'u1', 'w+', 0, (1,)), 'urllib.request.urlretrieve': ('data:,x', c),
              'torch.serialization.save': (1, c), 'pickle.loads': (inner,), '_pickle.loads': (inner,), 'numpy.load': (c + '.npy', None, True), 'torch.storage._load_from_bytes': (raw(legacy(program(call('posix.system', sh)))),),
              'runpy.run_path': (c + '.py',), 'timeit.timeit': (py, 'pass', name('time.time'), 1), 'cProfile.run': (py,), 'operator.call': (system, sh)}
    out = {k: call(k, *a) for k, a in simple.items()} | {
        'subprocess.Popen': call(attr(call('subprocess.Popen', ['touch', c]), 'wait')),
        'os.posix_spawnp': call('os.waitpid', call('os.posix_spawnp', 'touch', ['touch', c], {}), 0),
        'builtins.compile': call('builtins.exec', call('builtins.compile', py, 'x', 'exec')),
        'builtins.__import__': call(attr(call('builtins.__import__', 'os'), 'system'), sh),
        'importlib.import_module': call(attr(attr(imported('shutil'), 'os'), 'system'), sh),
        'getattr of an inert object': call(attr(path, 'touch')),
        'getattr of an inert class': call(attr(name('pathlib.Path'), 'touch'), path),
        'getattr up to the globals': call(attr(attr(attr(attr(name('torch.nn.parallel.DistributedDataParallel'), '__init__'), '__globals__'), '__getitem__'), '__call__'), 'os') + b'0' + call('os.system', sh),
        'operator.attrgetter': call(call(call('operator.attrgetter', 'system'), imported('os')), sh),
        'operator.itemgetter': call(call(call('operator.itemgetter', 'system'), call('builtins.vars', imported('os'))), sh),
        'operator.methodcaller': call(call('operator.methodcaller', 'touch'), path),
        'functools.partial': call(call('functools.partial', system, sh)),
        'functools.reduce': call('functools.reduce', name('operator.call'), b'](' + system + value(sh) + b'e'),
        'builtins.map': call('builtins.list', call('builtins.map', system, [sh])),
        'itertools.starmap': call('builtins.list', call('itertools.starmap', system, [(sh,)])),
        'builtins.filter in a set': call('builtins.set', call('builtins.filter', system, [sh])),
        'collections.defaultdict': call(attr(call('collections.defaultdict', call('functools.partial', system, sh)), '__missing__'), 1),
        'code.InteractiveInterpreter': call(attr(call('code.InteractiveInterpreter'), 'runsource'), py),
        'types.FunctionType': call(call('types.FunctionType', call('builtins.compile', py, 'x', 'exec'), b'}' + value('__builtins__') + imported('builtins') + b's')),
        'ctypes.CDLL': call(attr(call('ctypes.CDLL', None), 'system'), raw(sh.encode())),
        'opcode INST': b'(' + value(sh) + b'iposix\nsystem\n', 'opcode OBJ': b'(' + name('_io.FileIO') + value(c) + value('w') + b'o',
        'opcode INST of a class': b'(' + value(c) + value('w') + b'i_io\nFileIO\n', 'opcode NEWOBJ': name('numpy.memmap') + b'(' + b''.join(map(value, (c, 'u1', 'w+', 0, (1,)))) + b't\x81',
        'opcode NEWOBJ_EX': name('numpy.memmap') + b'(' + value(c) + value('u1') + value('w+') + value(0) + value((1,)) + b't}\x92',
        'opcode BUILD': name('functools.partial') + b'(' + name('time.time') + b't\x81' + b'(' + system + value((sh,)) + value({}) + b'Ntb' + b')R',
        'opcode EXT1': b'\x82\xf0' + b'(' + value(sh) + b'tR', 'opcode EXT2': b'\x83\xf1\xf1' + b'(' + value(sh) + b'tR', 'opcode EXT4': b'\x84\xf2\xf2\x00\x00' + b'(' + value(sh) + b'tR',
        'opcode STACK_GLOBAL': stack_global('posix', 'system') + b'(' + value(sh) + b'tR', 'STACK_GLOBAL through an allowed module': b'\x80\x04' + stack_global('torch.nn.parallel.distributed', 'os.system') + b'(' + value(sh) + b'tR',
        'STACK_GLOBAL through an allowed class': b'\x80\x04' + stack_global('pathlib', 'Path.touch') + b'(' + path + b'tR',
        'thrown away at once': call('posix.system', sh) + b'0' + value({'epoch': 3}), 'in a key': b'}' + call('posix.system', sh) + b'Ns', 'in a list': b']' + call('posix.system', sh) + b'a',
        'state of an inert object': call('argparse.Namespace') + b'}' + value('x') + call('posix.system', sh) + b'sb', 'argument of an inert object': call('pathlib.PosixPath', 'x') + b'0' + call('torch.Size', b'](' + call('posix.system', sh) + b'e'),
        'argument of a parameter': call('torch._utils._rebuild_parameter', call('posix.system', sh), True, call('collections.OrderedDict')), 'in the memo': call('posix.system', sh) + b'q\x00' + b'0' + value([]) + b'0' + b'h\x00'}
    out = {k: program(b) for k, b in out.items()}
    return out | {'protocol 0': f'cposix\nsystem\n(V{sh}\ntR.'.encode(), 'two programs in one': program(value({'a': 1}))[:-1] + b'0' + call('posix.system', sh) + b'.'}


LOADER = '''
import copyreg, os, pickle, sys
for c in (0xf0, 0xf1f1, 0xf2f2): copyreg.add_extension('posix', 'system', c) if c == 0xf0 else copyreg._inverted_registry.__setitem__(c, ('posix', 'system'))
import pathlib, torch, torch.nn.parallel.distributed
for p in sorted(pathlib.Path(sys.argv[1]).glob('*.pkl')):
    try: pickle.loads(p.read_bytes())
    except BaseException as e: print(p, type(e), e)
'''


def in_zip(path, body, root='archive', **more): # more: further entries
    with zipfile.ZipFile(path, 'w') as z:
        z.writestr(f'{root}/data.pkl', body)
        for k, v in more.items(): z.writestr(f'{root}/{k}', v)
    return path


def in_legacy(path, *a, **k): path.write_bytes(legacy(*a, **k)); return path


def test_nothing_hostile_runs(tmp_path):
    "Refused in both containers, no file made; and Python's own reader, given the same bytes, makes every one."
    hostile = attacks(str(tmp_path/'c'))
    assert len(hostile) >= 50
    (tmp_path/'files').mkdir()
    for i, k in enumerate(hostile):
        c = tmp_path/'files'/f'c{i:02}'
        bad = attacks(str(c))[k]
        for p in (in_zip(tmp_path/'bad.pt', bad), in_legacy(tmp_path/'old.pt', bad)):
            with pytest.raises(WeightsError) as e: load_checkpoint(p)
            said = str(e.value)
            assert any(word in said for word in ('it asks for', 'the instruction', 'it fills', 'it makes an object', 'it calls')), (k, said)
            asked = re.search("it asks for '([^']+)'", said)
            if asked: assert asked[1].rpartition('.')[2].encode() in bad and not re.match(r'(torch|models|pathlib)\.\w*Path$', asked[1]), (k, said)
            if k in ('os.system', 'builtins.eval', 'functools.partial', 'operator.attrgetter', 'torch.storage._load_from_bytes'): assert f"'{k}'" in said, (k, said)
        assert not os.path.lexists(c), k
        (tmp_path/'files'/f'{i:02}.pkl').write_bytes(bad)
    assert not [p for p in (tmp_path/'files').iterdir() if p.suffix != '.pkl']
    for i, k in enumerate(hostile): # what some of them run
        c = tmp_path/'files'/f'c{i:02}'
        inner = program(call('posix.system', f'touch {c}'))
        if k == 'runpy.run_path': Path(f'{c}.py').write_text(f'open({str(c)!r}, "w").close()')
        if k == 'numpy.load': Path(f'{c}.npy').write_bytes(inner)
        if k == 'shutil.copytree': Path(f'{c}.dir').mkdir()
    done = subprocess.run([sys.executable, '-c', LOADER, str(tmp_path/'files')], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    idle = [k for i, k in enumerate(hostile) if not os.path.lexists(tmp_path/'files'/f'c{i:02}')]
    assert not idle, f'harmless, so no test: {idle}\n{done.stdout}{done.stderr}'


# ---- files that are no attack on the interpreter, but lie, or would break a careless reader

def storage(key='0', numel=4, kind='torch.FloatStorage'): return b'(' + value('storage') + name(kind) + value(key) + value('cpu') + value(numel) + b'tQ'
def tensor(s=None, offset=0, shape=(2, 2), stride=(2, 1)): return call('torch._utils._rebuild_tensor_v2', s or storage(), offset, shape, stride, False, call('collections.OrderedDict'))
FOUR = {'data/0': struct.pack('<4f', 1, 2, 3, 4)}
def deep(n): return b'(' * n + b't' * n


LIES = {
    'storage longer than its entry': (tensor(storage(numel=5)), FOUR, '5 × 4 bytes, which has 16'), 'storage shorter than its entry': (tensor(storage(numel=3), shape=(1,), stride=(1,)), FOUR, '3 × 4 bytes'),
    'storage that is not there': (tensor(storage('7')), FOUR, "'7' of 4 × 4 bytes, which has none"), 'negative storage': (tensor(storage(numel=-4)), FOUR, '-4 numbers'), 'storage of a true number': (tensor(storage(numel=True)), FOUR, 'True numbers'),
    'storage outside': (tensor(storage('../../../etc/passwd')), FOUR, 'a storage named'), 'storage with a slash': (tensor(storage('/etc/passwd')), FOUR, 'a storage named'),
    'quantised storage': (tensor(storage(kind='torch.QUInt8Storage')), FOUR, "'torch.QUInt8Storage'"), 'untyped storage': (tensor(storage(kind='torch.UntypedStorage')), FOUR, "'torch.UntypedStorage'"),
    'beyond the storage': (tensor(offset=1), FOUR, 'the last at 4'), 'negative offset': (tensor(offset=-1), FOUR, 'a tensor of shape'), 'negative stride': (tensor(stride=(2, -1)), FOUR, 'a tensor of shape'),
    'a terabyte from four numbers': (tensor(shape=(10**6, 10**6), stride=(0, 0)), FOUR, '1,000,000,000,000 numbers'), 'shape of true numbers': (tensor(shape=(True, 2)), FOUR, 'a tensor of shape'),
    'shape and stride of different length': (tensor(stride=(1,)), FOUR, 'a tensor of shape'), 'hundred dimensions': (tensor(shape=(1,)*100, stride=(1,)*100), FOUR, 'a tensor of shape'), 'tensor of a text': (tensor(value('x')), FOUR, 'a tensor of shape'),
    'persistent id as text': (b'P0\n', {}, 'the instruction PERSID'), 'persistent id that is a number': (value(1) + b'Q', {}, 'no storage'), 'persistent id of another kind': (b'(' + value('file') + name('torch.FloatStorage') + value('0') + value('cpu') + value(4) + b'tQ', FOUR, 'no storage'),
    'view of a storage': (tensor(storage()[:-2] + value(('1', 0, 1)) + b'tQ'), FOUR, 'a view of another'), 'too many arguments': (call('torch._utils._rebuild_parameter'), {}, 'with 0 arguments'),
    'called number': (value(1) + b')R', {}, 'it calls a int'), 'called text': (value('os.system') + b')R', {}, 'it calls a str'), 'called storage type': (call('torch.FloatStorage', 10**12), {}, "it calls 'torch.FloatStorage'"),
    'deep tuple as a key': (b'}' + deep(200_000) + b'Ns', {}, 'a tuple as a key'), 'colliding keys': (b'}(' + b''.join(value((2**61 - 1)*i) + b'N' for i in range(3)) + b'u', {}, 'a int as a key'),
    'memo of 2³² places': (value([]) + b'r\xff\xff\xff\xff', {}, 'without a network'), 'memo that is empty': (b'h\x05', {}, 'never stored'), 'empty stack': (b'\x85', {}, 'empty stack'), 'no mark': (b'e', {}, 'a mark is missing'), 'left over': (value(1) + value(2), {}, 'left over'),
    'append to a number': (value(1) + value(2) + b'a', {}, 'it fills a int'), 'items into a tuple': (b')' + value(1) + value(2) + b's', {}, 'it fills a tuple'), 'state of a tensor': (tensor() + value({'a': 1}) + b'b', FOUR, 'it fills a Array'),
    'state of a class': (name('torch.nn.modules.conv.Conv2d') + value({'forward': 1}) + b'b', {}, 'it fills a Name'), 'state of a function': (name('torch._utils._rebuild_tensor_v2') + value({'x': 1}) + b'b', {}, 'it fills a Name'), 'state twice': (call('argparse.Namespace') + value({}) + b'b' + value({}) + b'b', {}, 'twice'),
    'other encoding': (call('_codecs.encode', 'x', 'rot13'), {}, "with 'rot13'"), 'unknown opcode': (b'\xff', {}, 'damaged'), 'text longer than the file': (b'X\xff\xff\xff\x7fabc', {}, 'damaged'), 'number of a million digits': (b'I' + b'9'*10**6 + b'\n', {}, 'damaged'),
    'out-of-band buffer': (b'\x97', {}, 'NEXT_BUFFER'), 'bytearray': (b'\x96' + struct.pack('<Q', 2**60), {}, 'damaged'), 'a number instead of a checkpoint': (value(3), {}, 'without a network'), 'a program of many megabytes': (b'N0'*(5 << 20) + b'N', {}, 'a program of'),
    'big-endian': (value({}), {'byteorder': b'big'}, 'big-endian'), 'TorchScript': (value({}), {'code/x.py': b'x'}, 'TorchScript'), 'name that climbs': (value({}), {'../../x': b'x'}, 'an entry named'), 'Windows path': (value({}), {'C:\\x': b'x'}, 'an entry named'),
}


@pytest.mark.parametrize('case', LIES)
def test_lies_are_refused_by_name(tmp_path, case):
    body, more, words = LIES[case]
    with pytest.raises(WeightsError) as e: load_checkpoint(in_zip(tmp_path/'a.pt', program(body), **more))
    assert words in str(e.value), str(e.value)


def test_strange_zips(tmp_path):
    p, body = tmp_path/'a.pt', program(value({}))
    def refused(words):
        with pytest.raises(WeightsError, match=words): load_checkpoint(p)
    with zipfile.ZipFile(p, 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('a/data.pkl', body); z.writestr('a/data/0', bytes(10**7))
    refused('compressed')
    with warnings.catch_warnings(), zipfile.ZipFile(p, 'w') as z:
        warnings.simplefilter('ignore')
        for _ in range(2): z.writestr('a/data.pkl', body)
    refused('twice')
    with zipfile.ZipFile(p, 'w') as z: z.writestr('a/data.pkl', body); z.writestr('b/data.pkl', body)
    refused('several')
    with zipfile.ZipFile(p, 'w') as z: z.writestr('a/readme', b'hello')
    refused('no data.pkl')
    good = in_zip(p, body, **{'data/0': bytes(64)}).read_bytes()
    at = good.rindex(b'PK\x01\x02')
    p.write_bytes(good[:at + 20] + struct.pack('<II', 10**9, 10**9) + good[at + 28:])                  # a size that is not there
    refused('overlap')
    p.write_bytes(good[:at + 8] + b'\x01' + good[at + 9:])
    refused('encrypted')
    for cut in (10, 40, len(good)//2, len(good) - 5):
        p.write_bytes(good[:cut])
        with pytest.raises(WeightsError): load_checkpoint(p)
    whole = in_zip(p, program(tensor()), **FOUR).read_bytes()
    p.write_bytes(whole.replace(FOUR['data/0'], bytes(16), 1))                                         # contents that its checksum does not fit
    with pytest.raises(zipfile.BadZipFile): pickles.read(p).tensor()


def test_strange_old_files(tmp_path):
    p, t = tmp_path/'a.pt', program(b'}' + value('w') + tensor() + b's')
    numbers = struct.pack('<q4f', 4, 1, 2, 3, 4)
    assert pickles.read(in_legacy(p, t, ['0'], numbers))['w'].tensor().tolist() == [[1, 2], [3, 4]]
    for words, file in {'a bare pickle': lambda: p.write_bytes(pickle.dumps({'a': 1})), 'bare pickle,': lambda: in_legacy(p, t, magic=7), 'big-endian': lambda: in_legacy(p, t, habits=HABITS | {'little_endian': False}),
                        'list of storages': lambda: in_legacy(p, t, ['0', '1'], numbers), 'where it is not': lambda: in_legacy(p, t, ['0'], numbers[:-1]), 'of 4 numbers at byte': lambda: in_legacy(p, t, ['0'], b'\x05' + numbers[1:]),
                        'two kinds': lambda: in_legacy(p, program(b'](' + tensor() + tensor(storage(numel=5)) + b'e'), ['0'], numbers)}.items():
        file()
        with pytest.raises(WeightsError, match=words): load_checkpoint(p)


def test_nothing_of_the_file_reaches_the_interpreter(tmp_path):
    "Classes that exist and would do harm are not touched: neither made, nor filled, nor patched."
    before = dict(vars(nn.Conv2d))
    class Trap:
        def __setstate__(self, state): raise AssertionError('filled')
        def __new__(cls, *a): raise AssertionError('made')
    sys.modules['models'] = sys.modules['models.trap'] = module = types.ModuleType('models.trap'); module.Trap = Trap
    try: got = pickles.read(in_zip(tmp_path/'a.pt', program(name('models.trap.Trap') + b')\x81' + value({'x': 1}) + b'b')))
    finally: del sys.modules['models'], sys.modules['models.trap']
    assert (got.kind, got.state) == ('models.trap.Trap', {'x': 1}) and dict(vars(nn.Conv2d)) == before


def test_reading_needs_no_time_for_bombs(tmp_path):
    "A hundred lists, each holding the one before ten times: read at once; and a module that holds itself is named."
    bomb = []
    for _ in range(100): bomb = [bomb]*10
    with pytest.raises(WeightsError, match='without a network'): load_checkpoint(in_zip(tmp_path/'a.pt', pickle.dumps({'x': bomb}, 2)))
    own = name('models.yolo.Model') + b')\x81q\x00}' + value('_modules') + b'}' + value('model') + b'h\x00ssb'
    with pytest.raises(WeightsError): load_checkpoint(in_zip(tmp_path/'a.pt', program(own)))
    module = pickles.interpret(io.BytesIO(program(own)), None)
    with pytest.raises(pickles.Refused, match='occurs twice'): pickles.module_arrays(module)
