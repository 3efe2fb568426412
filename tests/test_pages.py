"""Fifty hostile names of classes, files, runs, folders and networks in every page, table and line that the library
makes, rendered by Chromium: no script runs, no table breaks, no plot takes a name for a formula."""
import csv, io, re
from pathlib import Path
from types import SimpleNamespace

import nbformat, numpy as np, pytest

import browser, yolokit
from yolokit.apps import compress, crossval, leaderboard as app_board, precision_study, relabel, sweep
from yolokit.cleaning import checks, inspector, prepare, repair
from yolokit.cleaning.gallery import gallery
from yolokit.cleaning.inspector import Inspector
from yolokit.cleaning.prepare import Prepared
from yolokit.compression import pareto
from yolokit.core.console import log_line
from yolokit.core.images import write_image
from yolokit.core.untrusted import escape_markdown
from yolokit.data import table, viewer
from yolokit.data.table import from_columns
from yolokit.evaluation import bootstrap, curves, errors, leaderboard, metrics
from yolokit.export import certificate
from yolokit.training import monitor

PWN = 'top.pwned=(top.pwned||0)+1'
NAMES = [
    f'"><svg/onload={PWN}>', f'"><img src=x onerror={PWN}>', f"'><img src=x onerror={PWN}>",
    f'<script>{PWN}</script>',
    f'</title><script>{PWN}</script>', f'</style><script>{PWN}</script>', f'</script><script>{PWN}</script>',
    f'</td></tr></table><script>{PWN}</script>', f'" autofocus onfocus="{PWN}', f"' autofocus onfocus='{PWN}",
    f'" onmouseover="{PWN}" style="position:fixed;inset:0', f'<iframe srcdoc="<script>{PWN}</script>">',
    f'<details open ontoggle={PWN}>', f'<body onload={PWN}>', f'<a href="javascript:{PWN}">x</a>',
    f'[x](javascript:{PWN})', f'![x](x" onerror="{PWN})', f'<javascript:{PWN}>', f'[x]: javascript:{PWN}',
    f'&lt;img src=x onerror={PWN}&gt;', f'&#60;script&#62;{PWN}&#60;/script&#62;', f'<!--><img src=x onerror={PWN}>',
    f'```\n<script>{PWN}</script>', f'`<img src=x onerror={PWN}>`', f'a|b|<img src=x onerror={PWN}>|c',
    f'\n\n<script>{PWN}</script>\n\n', f'\r\n| a | b |\n|---|---|\n| <img src=x onerror={PWN}> | |',
    f'$\\href{{javascript:{PWN}}}{{x}}$', f'\\(\\unicode{{x3c}}script\\)', '5$_bill_$', 'IMG_$1_$2',
    '$\\frac{$', '$^$',
    '_hidden', '__bold__', '**bold**', '# title', '- item', '---', '===', '> quote', '1. one', '=cmd|\' /C calc\'!A1',
    '+1+1', '-2+3', '@SUM(1+1)', '\t=1+1', '\u202egpj.exe', 'a\x1b[2J\x1b]0;title\x07b',
    '%s%n{0}{}\\x', '사람 👩‍💻 _^~',
    f'<math><mtext></form><form><mglyph><style></math><img src onerror={PWN}>', f'{{{{{PWN}}}}}${{{PWN}}}']
DOT = bytes.fromhex('89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360606060'
                    '0000000500015e221d0b0000000049454e44ae426082')
RUNS = [n.replace('/', '') for n in NAMES]
MADE_BY = (table, checks, inspector, prepare, repair, monitor, errors, leaderboard, metrics, compress, crossval,
           precision_study, relabel, sweep, certificate)


def data(folder):
    "Truth and detections of as many classes as there are names; each picture's name is hostile too."
    n, g = len(NAMES), np.random.default_rng(0)
    for i in range(4): write_image(folder/f'p{i}.png', np.full((96, 96, 3), 90, np.uint8))
    files = [RUNS[i % n] + '.png' for i in range(n)]
    images = dict(file=files, path=[str(folder/f'p{i % 4}.png') for i in range(n)], width=[96]*n, height=[96]*n,
                  split=['train', 'val']*(n//2) + ['val']*(n % 2))
    at = g.uniform(5, 40, (n, 2))
    box = dict(zip(('x0', 'y0', 'x1', 'y1'), np.c_[at, at + g.uniform(20, 50, (n, 2))].T))
    truth = from_columns(images, dict(image=np.arange(n), category=np.arange(n), **box), NAMES)
    shift = {k: v + g.normal(0, 4, n) for k, v in box.items()}
    found = from_columns(images, dict(image=np.arange(n), category=(np.arange(n) + (np.arange(n) % 3 == 0)) % n,
                                      score=g.uniform(.3, 1, n), **shift), NAMES)
    return truth, found


def row(k, name): # of the leaderboard
    base = dict(name=name, way='A', rank=k + 1, AP=.5, low=.4, high=.6, AP50=.7, AP75=.5, network=name, width=96,
                height=96, mode=name, dtype='float32', params=1000*(k + 1), macs=10**6, mb=.1, ms=1., device=name,
                threads=1, train_seconds=60., parent=name, data=name, split='val', stage=name, notes=name, score=.5)
    return base | {k: 1 for k in leaderboard._PROTOCOL if k not in base}


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "Every page (a file), every text in Markdown and every piece of HTML that the library makes, by name."
    folder = tmp_path_factory.mktemp('pages')
    truth, found = data(folder)
    pages, markdown, html = {}, {}, {}
    errors.error_report(truth, found, folder/'errors.html', n=1, most=2)
    pages['errors'] = folder/'errors.html'
    with pytest.MonkeyPatch.context() as m:
        m.setattr(leaderboard, '_protocol_differences', lambda rows: {'A': NAMES[0], 'B': NAMES[24]})
        rows = [row(k, name) for k, name in enumerate(RUNS)]
        (folder/'board.html').write_text(leaderboard.to_html(rows), encoding='utf-8')
        markdown['board'], csv_text = leaderboard.markdown(rows), leaderboard.csv_text(rows)
        m.setattr(app_board, 'compare', lambda *a: ([(n, n, n) for n in NAMES], {}))
        markdown['compare'] = app_board.compare_markdown(SimpleNamespace(compare='a b'))
    pages['board'] = folder/'board.html'
    for k, name in enumerate(RUNS[::6]):
        report(folder/f'page{k}', name)
        pages[f'report {k}'] = folder/f'page{k}/report.html'
    markdown['precision'] = precision_study.markdown_table({n: dict(a=n, b=n) for n in NAMES})
    markdown['compress'] = compress._summary_table(rows, rows[0]['name'], 'AP')
    markdown['metrics'] = metrics.coco(truth, found)._repr_markdown_()
    turned = np.arange(len(truth))[:, None] % 4 == 0
    faulty = truth.with_xyxy(np.where(turned, truth.xyxy[:, [2, 1, 0, 3]], truth.xyxy))
    plan = repair.plan(seen := checks.check(faulty))
    markdown |= dict(findings=seen._repr_markdown_(), plan=plan._repr_markdown_(),
                     journal=repair.apply(faulty, plan)[1]._repr_markdown_())
    info = dict(counts={'train': [1]*(len(NAMES) + 1), 'val': [1]*(len(NAMES) + 1)}, names=NAMES, in_gaps=0,
                repair=dict(found={'reversed-x': 1}), notes=NAMES, left_out=[dict(file=n, why=n) for n in NAMES[:3]])
    markdown['prepare'] = Prepared(folder, info)._repr_markdown_()
    metric = dict.fromkeys(bootstrap.METRICS, .5)
    numbers = metric | dict(interval=dict.fromkeys(metric, (.4, .6)), folds=[.4, .6], spread=.1)
    markdown['crossval'] = crossval._Crossval(SimpleNamespace(name=NAMES[0]), truth, found, np.arange(len(NAMES)) % 2,
                                              numbers, seen)._repr_markdown_()
    (decided := folder/'decided.json').write_text('[]')
    run = SimpleNamespace(name=NAMES[0])
    markdown['doubts'] = relabel._Doubts(run, SimpleNamespace(name=NAMES[3]), truth, seen, decided)._repr_markdown_()
    part, gained = dict(AP=.5, AP50=.6), dict(AP=dict(difference=.1, low=.0, high=.2, noise=False))
    markdown['gain'] = relabel._Gain(3, dict(zip('abc', NAMES[:3])), dict.fromkeys('abc', part), gained,
                                     gained)._repr_markdown_()
    trials = [dict(number=k, state='complete', run=n, AP=.5 + k/99) | {NAMES[0]: n, 'lr0': .01*k}
              for k, n in enumerate(RUNS)]
    markdown['sweep'], figure = sweep.sweep_report(dict(trials=trials))
    figure.savefig(folder/'sweep.png')
    shipped = dict(target='onnx', runtime='x 1', maps=1., px=1., score=1., ap=.5, ms=1., notes=NAMES,
                   files=dict.fromkeys(NAMES, '0'*64))
    facts = dict.fromkeys(('judged', 'machine', 'before', 'behind'), 'Said.')
    for k in range(0, len(NAMES), 6):
        markdown[f'certificate {k}'] = certificate._page(dict(network=NAMES[k], width=96, height=96, classes=2,
                                                              rows=[shipped], **facts))
    html['table'] = truth._repr_html_()
    look = Inspector(faulty, seen, folder/'decisions.json')
    look.error = NAMES[0]
    html['inspector'] = look.stage()
    look.grid = True
    html['gallery'] = look.stage()
    return SimpleNamespace(folder=folder, truth=truth, found=found, pages=pages, markdown=markdown, html=html,
                           rows=rows, csv=csv_text, findings=seen)


def report(folder, name): # a run's report.ipynb
    run = SimpleNamespace(name=name, folder=folder, info=dict(
        stage=name, state=name, parent=name, network=dict(name=name), data=dict(source=name), device=name,
        recipe=dict(note=name, weights=name, augment={name: name}), result={name: name}, versions={name: name}))
    (folder/'plots').mkdir(parents=True, exist_ok=True)
    if '/' not in name and len(name.encode()) < 200: (folder/f'plots/{name}.png').write_bytes(DOT)
    return nbformat.read(monitor.write_report(run), 4)


COUNT = '''(() => { const on = [...document.querySelectorAll('*')].filter(e => [...e.attributes].some(a =>
 a.name.startsWith('on') || /^\\s*javascript:/i.test(a.value)));
 const odd =
  [...document.querySelectorAll('table')].filter(t => new Set([...t.rows].map(r => r.cells.length)).size > 1);
 return [window.pwned || 0, on.map(e => e.outerHTML.slice(0, 300)), odd.map(t => t.outerHTML.slice(0, 500)),
 document.querySelectorAll('table').length] })()'''


@pytest.mark.skipif(browser.find() is None, reason='no Chromium: apt-get install chromium')
def test_no_page_runs_a_name_and_no_table_breaks(made, tmp_path):
    exporter = pytest.importorskip('nbconvert').HTMLExporter()
    v = nbformat.v4
    out = lambda kind, text: v.new_output('display_data', {kind: text, 'text/plain': 'x'})
    clean = re.compile(r' onload="[^"]*"') # the inspector's own script
    outputs = [out('text/markdown', t) for t in made.markdown.values()]
    outputs += [out('text/html', clean.sub('', t)) for t in made.html.values()]
    nb = v.new_notebook(cells=[v.new_code_cell('show()', outputs=outputs), *map(v.new_markdown_cell,
                                                                               made.markdown.values())])
    for k, name in enumerate(RUNS):
        cells = report(tmp_path/f'r{k}', name).cells
        for j, c in enumerate(cells): c.id = f'r{k}-{j}'
        nb.cells += [c for c in cells if k % 8 == 0 or c.cell_type == 'markdown']
    page = exporter.from_notebook_node(nb)[0]
    # its own libraries are not fetched
    page = re.sub(r'<script[^>]*src="http[^"]*"[^>]*></script>', '', page)
    (tmp_path/'all.html').write_text(page, encoding='utf-8')
    with browser.chromium(tmp_path) as p:
        for file, tables in ((made.pages['errors'], 1), (made.pages['board'], 1),
                             *((f, 3) for k, f in made.pages.items() if k[:6] == 'report'), (tmp_path/'all.html', 200)):
            p.open(f'file://{file}')
            p.wait('document.readyState == "complete"', 60)
            if file == made.pages['board']: # two ticked rows are compared
                p.js("[...document.querySelectorAll('#board input')].slice(0, 2).forEach(e => e.click())")
                p.js("document.querySelector('#q').dispatchEvent(new Event('input'))")
                assert p.js("[...document.querySelectorAll('#board tbody tr')].length") == len(RUNS)
            ran, handlers, broken, n = p.js(COUNT)
            assert not ran and not handlers and not broken, (file, ran, handlers, broken)
            assert n >= tables, (file, n)
            if file.name != 'report.html': # shown as it is
                assert p.js("document.body.textContent.includes('=top.pwned=')"), file


def test_each_row_of_markdown_is_one_line(made):
    for name, text in made.markdown.items():
        rows = [l for l in text.splitlines() if l.startswith('|')]
        assert rows and len({l.count('|') for l in rows if l.count('|') == rows[-1].count('|')}) == 1, name
        bare = re.sub(r'(?ms)^```$.*?^```$', '', text)   # shown as it is, each line behind a sha256
        assert not re.search(r'<(?!span>|/span>|br>)', bare), name
    for n in NAMES: assert '|' not in escape_markdown(n) and '\n' not in escape_markdown(n)


def test_every_table_has_as_many_rules_and_cells_as_heads(made, tmp_path):
    "The class table had ten heads over nine rules: JupyterLab shows such a table as lines of text."
    texts = made.markdown | {f'report {k}': c.source for k, c in enumerate(report(tmp_path/'r', 'r').cells)}
    seen = 0
    for name, text in texts.items():
        tables = re.findall(r'(?m)^(?:\|.*\|[ ]*$\n?)+', text)
        assert tables or name.startswith('report'), name
        for t in tables:
            head, rule, *rows = t.splitlines()
            assert re.fullmatch(r'\|(:?-+:?\|)+', rule.replace(' ', '')), (name, rule)
            assert {l.count('|') for l in (head, *rows)} == {rule.count('|')}, (name, head, rule)
            seen += 1
    assert seen >= 12


def test_no_cell_of_a_csv_is_a_formula(made):
    rows = list(csv.reader(io.StringIO(made.csv)))
    assert len(rows) == len(RUNS) + 1 and len({len(r) for r in rows}) == 1
    assert not [v for r in rows for v in r if v[:1] in tuple('=+@-\t\r') and not re.fullmatch(r'-?[\d.e-]+', v)]


def test_no_line_turns_the_terminal(made, capfd, tmp_path):
    for n in NAMES: log_line(f'read {n}', tmp_path/'log.txt')
    said = capfd.readouterr().out + (tmp_path/'log.txt').read_text(encoding='utf-8')
    assert not re.search('[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]', said)
    assert r'\x1b[2J' in said and r'\u202egpj' in said


def test_every_plot_draws_a_name_as_it_is(made, tmp_path):
    "`$` is a dollar, not mathematics; a name that begins with an underscore stands in the legend."
    t, d = made.truth, made.found
    result = metrics.coco(t, d)
    few = result.__class__(result)
    few.precision, few.scores = result.precision, result.scores
    m = np.eye(len(NAMES) + 1, dtype=int)
    figures = [metrics.plot_pr(result), curves.plot_confusion(m, NAMES), viewer.plot_distributions(t),
               viewer.show_predictions(t, d, rows=np.arange(len(NAMES))[28:30]), gallery(t, made.findings, 4),
               pareto.plot_pareto(made.rows[28:34])]
    pair = bootstrap.paired_bootstrap(t, d, d, n=5)
    figures += [bootstrap.plot_paired_intervals(pair, n, n) for n in NAMES[28:30]]
    for k, f in enumerate(figures): f.savefig(tmp_path/f'{k}.png')
    for k in range(0, len(NAMES), 18): # a legend names twenty classes
        part = {n: c for n, c in list(result['per_class'].items())[k:k + 18]}
        few['per_class'], few.precision = part, result.precision[:, :, k:k + 18]
        ax = (f := metrics.plot_pr(few)).axes[0]
        f.savefig(tmp_path/'pr.png')
        shown = [x.get_text() for x in ax.get_legend().get_texts()]
        assert len(shown) == len([c for c in part.values() if c['truth']]) + 1, shown
    texts = {x.get_text() for f in figures for x in f.findobj(lambda a: hasattr(a, 'get_parse_math'))}
    assert all(not x.get_parse_math() for f in figures for x in f.findobj(lambda a: hasattr(a, 'get_parse_math')))
    assert not any('mathdefault' in x for x in texts) # a power of ten on a logarithmic axis
    assert '5$_bill_$' in texts and not any('\x1b' in x or '\u202e' in x for x in texts)


def test_every_page_and_table_is_among_them():
    "What shows itself in Markdown or HTML, or makes a text or a page of it: a new one is rendered here too."
    makes = re.compile(r'def _repr_(markdown|html|mimebundle)_|escape_(markdown|html)\(')
    shown = {f'{p.parent.name}.{p.stem}' for p in Path(yolokit.__file__).parent.glob('*/*.py')
             if makes.search(p.read_text(encoding='utf-8'))}
    assert shown == {'core.untrusted', *(m.__name__[8:] for m in MADE_BY)}
