"Networks for other runtimes. `export.to_darknet`, `to_onnx`, `to_deepstream` and `check` stand in the chapters below."
from importlib import import_module

_NAMES = dict(to_darknet='bundles', to_onnx='bundles', to_deepstream='deepstream', check='compatibility',
              check_compatibility='compatibility')


def __getattr__(name: str):
    if name not in _NAMES: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    module = import_module(f'{__name__}.{_NAMES[name]}')
    return getattr(module, 'check_compatibility' if name == 'check' else name)
