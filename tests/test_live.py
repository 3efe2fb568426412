"""One short look at the inspector in a live JupyterLab in headless Chromium: see it, click it, find the decision on disk."""
import json, os
import nbformat, pytest
import browser

CELLS = ['''
import numpy as np
from pathlib import Path
from yolokit.images import draw, write
from yolokit.repair import check, corrupt, plan
from yolokit.table import make
from yolokit.viewer import Inspector
g = np.random.default_rng(0)
p = g.uniform(0, 200, (60, 2))
xyxy = np.c_[p, p + g.uniform(20, 60, (60, 2))].round()
files = [f'주차장_맑음_{i}.png' for i in range(6)]
for i, f in enumerate(files): write(f, draw(np.full((280, 280, 3), 90 + 10*i, np.uint8), xyxy[i*10:][:10], None, list(range(10)), width=6))
clean = make(dict(file=files, path=[str(Path(f).absolute()) for f in files], width=[280]*6, height=[280]*6, split=['train']*4 + ['val']*2),
             dict(image=np.repeat(range(6), 10), category=g.integers(0, 2, 60), **dict(zip(('x0', 'y0', 'x1', 'y1'), xyxy.T))), ['세단(승용차)', '오토바이'])
table, key = corrupt(clean, .5, kinds=('reversed-x', 'zero-area', 'near-duplicate'))
''', "Inspector(table, plan(check(table)), 'decisions.json')"]

NOTEBOOK = "[...jupyterapp.shell.widgets('main')].find(w => w.context && w.sessionContext)"
BUTTON = "[...document.querySelectorAll('button.jupyter-button')].find(b => b.textContent.trim() == '{}')"
IMAGE = "document.querySelector('img.widget-image')"
TEXT = "(document.querySelector('.widget-html-content') || {textContent: ''}).textContent"

def run_all(page, url):
    page.open(url)
    page.wait(f"Boolean(window.jupyterapp && {NOTEBOOK} && {NOTEBOOK}.context.isReady && {NOTEBOOK}.sessionContext.isReady)", 40)
    page.js(f"jupyterapp.shell.activateById({NOTEBOOK}.id)")
    page.wait(f"jupyterapp.shell.currentWidget == {NOTEBOOK}")
    page.js("window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => true)")
    page.wait(f"Boolean({IMAGE} && {IMAGE}.naturalWidth > 300)", 30)

def look(tmp_path, reload):
    "Open, see, accept, reject, filter, open again; what the disk and the screen say."
    if browser.find() is None:
        if os.environ.get('CI'): pytest.fail('no Chromium on the PATH: apt-get install chromium')
        pytest.skip('no Chromium on the PATH (apt-get install chromium): the live page was not looked at')
    work = tmp_path/'work'
    work.mkdir()
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c.strip()) for c in CELLS],
                                  metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python')))
    nbformat.write(nb, work/'live.ipynb')
    decisions = lambda: json.loads((work/'decisions.json').read_text()) if (work/'decisions.json').exists() else []
    with browser.lab(tmp_path, work) as url, browser.chromium(tmp_path) as page:
        run_all(page, url('live.ipynb'))
        first, before = page.js(f'{IMAGE}.src'), page.js(TEXT)
        assert before.startswith('1 / ') and '0 decisions' in before and 'reversed-x' in before
        page.picture(tmp_path/'shown.png')
        page.click(BUTTON.format('accept'))
        page.wait(f"{TEXT}.startsWith('2 / ') && {IMAGE}.src != {json.dumps(first)}", 20)
        page.click(BUTTON.format('reject'))
        page.wait(f"{TEXT}.startsWith('3 / ')", 20)
        assert [d['decision'] for d in decisions()] == ['accept', 'reject']
        assert decisions()[0]['reason'] == 'reversed-x' and decisions()[0]['file'].startswith('주차장_')
        # a filter: only what was decided
        page.js("(() => {const s = [...document.querySelectorAll('.widget-dropdown select')].pop();"
                "s.value = 'decided'; s.dispatchEvent(new Event('change', {bubbles: true})); return true})()")
        page.wait(f"{TEXT}.startsWith('1 / 2')", 20)
        assert 'accept' in page.js(TEXT)
        if reload: # a new page and the cells once more: the decisions are still there
            run_all(page, url('live.ipynb'))
            page.wait(f"{TEXT}.includes('2 decisions')", 30)
        page.picture(tmp_path/'decided.png')
    assert (tmp_path/'shown.png').stat().st_size > 20_000
    assert browser.ours(tmp_path) == [], 'processes were left running'

def test_inspector_in_a_live_page(tmp_path): look(tmp_path, reload=False)

@pytest.mark.soak
def test_decisions_survive_a_reload(tmp_path): look(tmp_path, reload=True)
