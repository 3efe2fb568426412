"""The inspector in a live JupyterLab in headless Chromium: keys, mouse, filters, the file on disk, and all of it once
more after a reload."""
import json, os, subprocess, sys, time
from contextlib import contextmanager
from pathlib import Path
import nbformat, numpy as np, pytest
import browser
from yolokit.core.images import draw_boxes, write_image
from yolokit.data.table import from_columns
from yolokit.data.formats import read, write
from yolokit.data.faults import plant_box_faults

CELLS = ['''
from yolokit.cleaning import checks
from yolokit.cleaning.inspector import Inspector
from yolokit.data import formats
table = formats.read('lot')
''', "Inspector(table, checks.check(table), 'decisions.json')"]

NOTEBOOK = "[...jupyterapp.shell.widgets('main')].find(w => w.context && w.sessionContext)"
BUTTON = "[...document.querySelectorAll('button.jupyter-button')].find(b => b.textContent.trim() == '{}')"
SVG = "document.querySelector('.yk-row svg')"
TEXT = "(document.querySelector('.yk-text') || {textContent: ''}).textContent"

def lot(folder):
    "Six drawn pictures with Korean names, a fifth of their sixty boxes spoilt; written as a COCO folder."
    g = np.random.default_rng(0)
    p = np.array([(10 + 60*(i % 4) + 4, 10 + 88*(i // 4)) for i in range(12)], float)
    xyxy = np.concatenate([np.c_[p, p + g.uniform(30, 50, (12, 2))].round()[:10] for _ in range(6)])
    files = [f'주차장_맑음_{i}.png' for i in range(6)]
    for i, f in enumerate(files):
        write_image(folder/'pictures'/f, draw_boxes(np.full((280, 280, 3), 90 + 10*i, np.uint8), xyxy[i*10:][:10], None,
                                                    list(range(10)), width=6))
    clean = from_columns(dict(file=files, path=[str(folder/'pictures'/f) for f in files], width=[280]*6, height=[280]*6,
                              split=['train']*4 + ['val']*2),
                 dict(image=np.repeat(range(6), 10), category=g.integers(0, 2, 60),
                      **dict(zip(('x0', 'y0', 'x1', 'y1'), xyxy.T))), ['세단(승용차)', '오토바이', '승합차'])
    write(plant_box_faults(clean, .5, kinds=('reversed-x', 'zero-area', 'near-duplicate'))[0], folder/'lot', 'coco')
    (folder/'pictures').rename(folder/'lot'/'pictures')

def run_all(page, url):
    page.open(url)
    page.wait(f"Boolean(window.jupyterapp && {NOTEBOOK} && {NOTEBOOK}.context.isReady && "
              f"{NOTEBOOK}.sessionContext.isReady)", 40)
    page.js(f"jupyterapp.shell.activateById({NOTEBOOK}.id)")
    page.wait(f"jupyterapp.shell.currentWidget == {NOTEBOOK}")
    page.js("window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => true)")
    page.wait(f"Boolean({SVG})", 40)

def no_browser():
    if browser.find() is not None: return
    if os.environ.get('CI'): pytest.fail('no Chromium on the PATH: apt-get install chromium')
    pytest.skip('no Chromium on the PATH (apt-get install chromium): the live page was not looked at')

def see(page, text, seconds=20): page.wait(f"{TEXT}.includes({json.dumps(text)})", seconds)

def choose(page, n, value):
    "The n-th filter: reason, split, class, state."
    page.js(f"(() => {{const s = document.querySelectorAll('.yk-inspector .widget-dropdown select')[{n}]; s.value = "
            f"{json.dumps(value)};"
            "s.dispatchEvent(new Event('change', {bubbles: true})); return true})()")

def spot(page, x, y):
    "Where a pixel of the image is on the screen."
    return page.js(f"(() => {{const e = {SVG}; e.scrollIntoView({{block: 'center'}}); const p = new DOMPoint({x}, "
                   f"{y}).matrixTransform(e.getScreenCTM()); return [p.x, p.y]}})()")

def selected(page):
    return page.js("(() => {const r = document.querySelector('.yk-box.yk-sel'); return ['x', 'y', 'width', "
                   "'height'].map(k => +r.getAttribute(k))})()")

def touch(page):
    "Click the picture: the keys are the inspector's then. A click is lost where the picture is drawn anew under it."
    focused, end = "Boolean(document.activeElement.closest('.yk-inspector'))", time.monotonic() + 40
    while True:
        page.click(SVG)
        try: return page.wait(focused, 4)
        except TimeoutError:
            if time.monotonic() > end: raise

def key(page, what, seen):
    "A key is lost where the picture is drawn anew, or where JupyterLab has the focus for a moment: asked thrice."
    for last in (False, False, True):
        page.press(what)
        try: return page.wait(seen, 20 if last else 10)
        except TimeoutError:
            if last: raise
            touch(page)

@contextmanager
def opened(tmp_path):
    "A page with the notebook on it, and what is in the file."
    no_browser()
    work = tmp_path/'work'
    work.mkdir()
    lot(work)
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c.strip()) for c in CELLS],
                                  metadata=dict(kernelspec=dict(name='python3', display_name='python3',
                                                                language='python')))
    nbformat.write(nb, work/'live.ipynb')
    with browser.lab(tmp_path, work) as url, browser.chromium(tmp_path) as page:
        run_all(page, url('live.ipynb'))
        yield (page, work,
               lambda: json.loads((work/'decisions.json').read_text()) if (work/'decisions.json').exists() else [], url)
    assert browser.ours(tmp_path) == [], 'processes were left running'

def by_hand(page, said):
    "The second finding's box moved by its corner, a new one drawn, given another class, another deleted."
    see(page, '2 / ')
    page.press('e')
    page.wait("document.querySelectorAll('.yk-knob').length == 4")
    x, y, w, h = selected(page)
    page.drag(spot(page, x + w, y + h), spot(page, x + w + 12, y + h + 9))
    see(page, 'drawn by hand')
    mine = next(d for d in said() if d['reason'] == 'by-hand')
    assert np.allclose(mine['after'], [x, y, x + w + 12, y + h + 9], atol=1), mine
    page.drag(spot(page, 262, 222), spot(page, 276, 270)) # free ground
    page.wait("Boolean(document.querySelector('[data-id=h0]'))")
    key(page, '3', "document.querySelector('[data-id=h0] title').textContent == '승합차'")
    new = said()[-1]
    assert (new['action'], new['label']) == ('add', 2) and np.allclose(new['after'], [262, 222, 276, 270], atol=1), new
    page.press('e')
    page.wait("!document.querySelector('.yk-knob')")


def test_inspector_in_a_live_page(tmp_path):
    with opened(tmp_path) as (page, work, said, _):
        before = page.js(TEXT)
        assert before.startswith('1 / ') and '0 decisions' in before and 'reversed-x' in before
        page.picture(tmp_path/'shown.png')
        cells = page.js(f"{NOTEBOOK}.content.widgets.length")
        touch(page)
        page.press('a') # JupyterLab's own `a` would put a cell above
        see(page, '2 / ')
        by_hand(page, said)
        page.click(BUTTON.format('next'))
        see(page, '3 / ')
        key(page, 'r', f"{TEXT}.includes('4 / ')") # the button has the focus now
        choose(page, 3, 'decided')
        see(page, '1 / 3 ·')
        assert page.js(f"{NOTEBOOK}.content.widgets.length") == cells
        words = [(d['reason'], d['decision']) for d in said()]
        assert len(words) == 5 and words.count(('by-hand', 'accept')) == 2 and said()[0]['file'].startswith('주차장_')
        page.picture(tmp_path/'decided.png')
    assert (tmp_path/'shown.png').stat().st_size > 20_000


@pytest.mark.soak
def test_decisions_survive_a_reload_and_reach_the_prepared_folder(tmp_path):
    keep = Path(os.environ.get('YOLOKIT_PICTURES') or tmp_path) # a folder for the screenshots, to look at
    with opened(tmp_path) as (page, work, said, url):
        shot = lambda name: page.picture(keep/f'{name}.png')
        shot('1-shown')
        page.press('g'); page.click(BUTTON.format('gallery'))
        page.wait("document.querySelectorAll('.yk-grid figure img').length == 12")
        shot('2-gallery')
        page.click("document.querySelectorAll('.yk-grid figure')[2]")
        see(page, '3 / ')
        choose(page, 0, 'near-duplicate')
        see(page, 'near-duplicate')
        touch(page)
        for n in (2, 3, 4): page.press('a'); see(page, f'{n} / ')
        assert [(d['reason'], d['decision']) for d in said()] == [('near-duplicate', 'accept')]*3
        shot('3-three-accepted')
        page.press('u')
        see(page, '3 / '); see(page, '2 decisions')
        page.press('a')
        see(page, '3 decisions')
        choose(page, 0, 'zero-area'); see(page, 'zero-area')
        touch(page); page.press('ArrowRight'); see(page, '2 / ')
        page.press('z')
        page.wait(f"{SVG}.viewBox.baseVal.width < 280")
        shot('4-zoomed')
        page.press('z')
        page.wait(f"{SVG}.viewBox.baseVal.width == 280")
        choose(page, 0, 'near-duplicate'); see(page, 'near-duplicate')
        page.press('ArrowRight')
        by_hand(page, said)
        shot('5-by-hand')
        page.press('d')
        page.wait("!document.querySelector('[data-id=h0]')")
        page.press('u')
        page.wait("Boolean(document.querySelector('[data-id=h0]'))")
        kept = said()
        run_all(page, url('live.ipynb')) # a new page, the cells once more
        see(page, f'{len(kept)} decisions', 30)
        choose(page, 3, 'decided')
        see(page, f"1 / {sum(d['reason'] != 'by-hand' for d in kept)} ·")
        page.js("document.querySelector('.yk-inspector').scrollIntoView()")
        shot('6-reloaded')
        assert said() == kept
    # papermill takes the file
    done = subprocess.run([sys.executable, '-m', 'papermill', 'nbs/prepare.ipynb', str(tmp_path/'out.ipynb'), '-p',
                           'data', str(work/'lot'), '-p', 'out', str(tmp_path/'prepared'),
                           '-p', 'decisions', str(work/'decisions.json'), '--no-progress-bar'],
                          cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    new = read(tmp_path/'prepared')
    for d in kept:
        if d['reason'] != 'by-hand': continue
        i = new.images['file'].tolist().index(d['file'])
        assert np.abs(new.xyxy[new.of(i)] - d['after']).max(1).min() < .01, d


# ---------------------------------------------------------------- from the index to an exported detector

INDEX = Path(__file__).parents[1]/'nbs/index.ipynb'
RUN = "document.querySelector('jp-button[data-command=\"notebook:run-cell-and-select-next\"], " \
      "[data-command=\"notebook:run-cell-and-select-next\"] button')"

def run_cell(page, n, seconds, skip=0, erase=0, text=''):
    "Click into the n-th code cell, type into its first line, click Run, wait until it is done; what it printed."
    cell = f"{NOTEBOOK}.content.widgets.filter(w => w.model.type == 'code')[{n}]"
    page.js(f"{NOTEBOOK}.content.scrollToItem({NOTEBOOK}.content.widgets.indexOf({cell}))")
    page.wait(f"Boolean({cell}.node.querySelector('.cm-line'))")
    time.sleep(.5) # what is above may still grow
    page.click(f"{cell}.node.querySelector('.cm-line')")
    page.wait(f"{NOTEBOOK}.content.activeCell == {cell}")
    if text:
        page.press('Home')
        for _ in range(skip): page.press('ArrowRight')
        for _ in range(erase): page.press('Delete')
        page.write(text)
        first = page.js(f"{cell}.model.sharedModel.source.split('\\n')[0]")
        assert f'{text}' in first.split('#')[0], first
    page.wait(f"!{RUN}.disabled")
    page.click(RUN)
    page.wait(f"{cell}.model.executionCount > 0", seconds)
    out = page.js(f"JSON.stringify({cell}.model.outputs.toJSON())")
    assert '"output_type":"error"' not in out, out[-3000:]
    return out

def index_to_export(tmp_path, folder, steps, seconds, shot=lambda page, name: None):
    "Five cells of the index in a live JupyterLab that `yolokit lab` started; the folder with its data and runs."
    no_browser()
    home, before = tmp_path/'home', INDEX.read_bytes()
    home.mkdir()
    with (browser.lab(tmp_path, '', ours=True, YOLOKIT_ROOT=str(home)) as url, browser.chromium(tmp_path) as page):
        page.open(url(''))
        page.wait(f"Boolean(window.jupyterapp && {NOTEBOOK} && {NOTEBOOK}.context.isReady && "
                  f"{NOTEBOOK}.sessionContext.isReady)", 120)
        assert page.js(f"{NOTEBOOK}.context.path") == 'nbs/index.ipynb'     # nobody said so
        page.js(f"jupyterapp.shell.activateById({NOTEBOOK}.id)")
        shot(page, 'index')
        run_cell(page, 0, 120, len('folder = "'), 0, str(folder))
        run_cell(page, 1, 60)
        page.wait(f"Boolean({SVG})", 40)
        shot(page, 'look')
        run_cell(page, 2, 180)
        shot(page, 'repaired')
        run_cell(page, 3, seconds, len('steps = '), 3, str(steps))
        shot(page, 'trained')
        said = run_cell(page, 4, 300)
        assert '95 %' in said and '"text/markdown":"# ' in said   # the certificate is rendered
        shot(page, 'exported')
        assert 'baseline-001' in run_cell(page, 5, 60)
        page.js("jupyterapp.commands.execute('docmanager:save').then(() => true)")
        browser.wait(lambda: list((home/'runs/lab').glob('index-*.ipynb')), 20, 'the copy')
    assert browser.ours(tmp_path) == [], 'processes were left running'
    assert INDEX.read_bytes() == before
    copy = max((home/'runs/lab').glob('index-*.ipynb'), key=os.path.getmtime).read_text(encoding='utf-8')
    assert str(folder) in copy and f'steps = {steps}' in copy
    return home

def check_exported(home):
    import onnxruntime
    run = home/'runs/baseline-001'
    assert (run/'weights/best.pt').is_file() and (run/'report.ipynb').is_file()
    file, = run.glob('export-001/onnx/*.onnx')
    onnxruntime.InferenceSession(str(file))


def test_the_index_leads_to_an_exported_detector(tmp_path):
    (tmp_path/'work').mkdir()
    lot(tmp_path/'work')
    check_exported(index_to_export(tmp_path, tmp_path/'work'/'lot', 2, 240))


@pytest.mark.soak
def test_the_index_leads_from_bccd_to_an_exported_detector(tmp_path):
    "200 steps on a folder that people have; with YOLOKIT_PICTURES screenshots: light, dark, narrow."
    from yolokit.core.files import shared_data_dir
    if not (shared := shared_data_dir()): pytest.skip('no ../shared/data')
    keep = Path(os.environ.get('YOLOKIT_PICTURES') or tmp_path)
    def shot(page, name):
        for theme in ('Light', 'Dark'):
            page.js(f"jupyterapp.commands.execute('apputils:change-theme', {{theme: 'JupyterLab {theme}'}})"
                    ".then(() => true)")
            for width in (1400, 640):
                page.resize(width)
                time.sleep(1)
                page.picture(keep/f'{name}-{theme.lower()}-{width}.png')
        page.resize(1400)
    home = index_to_export(tmp_path, (shared/'data/bccd').resolve(), 200, 1500, shot)
    check_exported(home)
