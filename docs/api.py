"What a module offers, as a page: names, signatures, docments. Read by ast and tokenize; nothing is imported."
import ast, io, re, tokenize
from pathlib import Path


def comments(source: str) -> dict: # line -> text
    "Every comment of a file."
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip('#').strip() for t in tokens if t.type == tokenize.COMMENT}


def plain(text: str) -> str:
    "Words as markdown shows them unchanged; what stands in backticks stays code."
    parts = re.split(r'(`[^`]*`)', text)
    return ''.join(p if p.startswith('`') else re.sub(r'([\\*_<\[\]$#~`])', r'\\\1', p) for p in parts)


def code(node) -> str:
    "An expression as code in a table's cell."
    return f'`{ast.unparse(node)}`'.replace('|', '\\|') if node else ''


def arguments(f: ast.FunctionDef, method: bool) -> list: # of (ast.arg, name as written, default or None)
    "Parameters of a function in order, without self."
    a = f.args
    first = a.posonlyargs + a.args
    out = list(zip(first, [x.arg for x in first], [None]*(len(first) - len(a.defaults)) + a.defaults))
    if a.vararg: out.append((a.vararg, '*' + a.vararg.arg, None))
    out += zip(a.kwonlyargs, [x.arg for x in a.kwonlyargs], a.kw_defaults)
    if a.kwarg: out.append((a.kwarg, '**' + a.kwarg.arg, None))
    return out[1:] if method else out


def table(rows) -> str:
    "Name, type, default and what it is; columns that are empty in every row are left out."
    head = ['name', 'type', 'default', 'what it is']
    rows = [list(r) for r in rows]
    keep = [i for i in range(4) if any(r[i] for r in rows)]
    if keep in ([], [0]): return ''
    lines = [[head[i] for i in keep], ['---']*len(keep), *([r[i] for i in keep] for r in rows)]
    return '\n'.join('| ' + ' | '.join(l) + ' |' for l in lines) + '\n\n'


def has(node, *names) -> bool:
    "Is a decorator of one of these names on it?"
    return any(re.match(rf'({"|".join(names)})\b', ast.unparse(d).split('.')[-1]) for d in node.decorator_list)


def signature(name: str, args: list) -> str:
    "A call as one writes it, with the defaults."
    return f'{name}({", ".join(n + (f"={ast.unparse(d)}" if d else "") for _, n, d in args)})'


def comments_of(args: list, returns, said: dict) -> tuple: # index -> text, of what is returned, of all together
    "A comment belongs to the last name on its line; behind several parameters on a single line it is about all."
    ends = [x.end_lineno for x, _, _ in args]
    if len(args) > 1 and len(set(ends)) == 1:
        back = said.get(returns.end_lineno, '') if returns and returns.end_lineno > ends[0] else ''
        return {}, back, said.get(ends[0], '')
    about = {end: i for i, end in enumerate(ends)}      # the last of a line stays
    if returns: about[returns.end_lineno] = 'returns'
    about = {i: said.get(end, '') for end, i in about.items()}
    return about, about.pop('returns', ''), ''


def parameter_rows(args: list, about: dict) -> list:
    "A row for each parameter."
    return [(f'`{n}`', code(x.annotation), code(d), plain(about.get(i, ''))) for i, (x, n, d) in enumerate(args)]


def function(f: ast.FunctionDef, said: dict, kind: str) -> str:
    "A function or method: signature, docstring, a table of its parameters."
    args = arguments(f, kind == 'method' and not has(f, 'staticmethod'))
    call = signature(f.name, args)
    if has(f, 'property', 'cached_property'): call, kind = f.name, 'property'
    if f.returns: call += f' -> {ast.unparse(f.returns)}'
    about, back, note = comments_of(args, f.returns, said)
    rows = parameter_rows(args, about)
    if rows and f.returns: rows.append(('*returns*', code(f.returns), '', plain(back)))
    texts = [plain(ast.get_docstring(f) or ''), plain(note or ('' if rows else back)), table(rows)]
    return directive(kind, call, '\n\n'.join(t for t in texts if t))


def directive(kind: str, signature: str, body: str) -> str:
    "A name for the index and the search."
    return f'::::{{py:{kind}}} {signature}\n{body.strip()}\n::::\n'


def fields(c: ast.ClassDef, said: dict) -> list: # rows of a table
    "What a dataclass holds."
    for node in c.body:
        if isinstance(node, ast.AnnAssign) and node.target.id[0] != '_':
            yield f'`{node.target.id}`', code(node.annotation), code(node.value), plain(said.get(node.end_lineno, ''))


def class_(c: ast.ClassDef, said: dict, patched: list) -> str:
    "A class: its fields and its public methods, those added by @patch with them."
    methods = [m for m in c.body if isinstance(m, ast.FunctionDef)]
    start = next((arguments(m, True) for m in methods if m.name == '__init__'), [])
    bases = ', '.join(map(ast.unparse, c.bases))
    texts = [plain(ast.get_docstring(c) or ''), f'Kind of `{bases}`.' if bases else '',
             table(list(fields(c, said)) or parameter_rows(start, comments_of(start, None, said)[0])),
             *(function(m, said, 'method').replace('::::', ':::') for m in methods + patched if m.name[0] != '_')]
    return directive('class', signature(c.name, start) if start else c.name, '\n\n'.join(t for t in texts if t))


def value(target: ast.Name, node: ast.Assign, said: dict) -> str:
    "A constant: its comment, and its value where that is short."
    text = ast.unparse(node.value)
    short = f'`{text}`' if len(text) <= 100 and '`' not in text else ''
    return directive('data', target.id, plain(said.get(node.end_lineno, '')) + '\n\n' + short)


def module_page(path: Path, # of the source
                name: str, # package.module
                book: Path | None, # the chapter that exports it
               ) -> tuple: # page, the module's first line
    "A page for a module: every name of its __all__ in the order of the source."
    source = path.read_text(encoding='utf-8')
    tree, said = ast.parse(source), comments(source)
    functions = [n for n in tree.body if isinstance(n, ast.FunctionDef)]
    values = [(t, n) for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)]
    public = next((ast.literal_eval(n.value) for t, n in values if t.id == '__all__'), [])
    parts, patched = {}, {}      # name -> text, class -> methods
    for f in functions:
        if has(f, 'patch') and f.name[0] != '_':
            patched.setdefault(ast.unparse(f.args.args[0].annotation), []).append(f)
        elif not has(f, 'patch'): parts[f.name] = f.lineno, function(f, said, 'function')
    for c in tree.body:
        if isinstance(c, ast.ClassDef): parts[c.name] = c.lineno, class_(c, said, patched.get(c.name, []))
    for t, n in values:
        if t.id not in parts: parts[t.id] = n.lineno, value(t, n, said)
    about = ast.get_docstring(tree) or ''
    told = f'Told in [{book.stem}](/{book.relative_to(path.parents[2])}).\n\n' if book else ''
    head = f'# yolokit.{name}\n\n{plain(about)}\n\n{told}```{{py:module}} yolokit.{name}\n```\n\n'
    listed = sorted(parts[n] for n in public if n in parts)
    return head + '\n'.join(text for _, text in listed), plain(about).split('\n')[0]
