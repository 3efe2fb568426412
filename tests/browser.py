"""Just enough of the Chrome DevTools Protocol to open a page, run script in it, click in it and take its picture.

Chromium comes from the system (`apt-get install chromium`); nothing is downloaded. The websocket client is the one that
jupyter-server brings along.
"""
import base64, json, os, shutil, signal, socket, subprocess, sys, time, urllib.request
from contextlib import contextmanager
from pathlib import Path

FLAGS = ('--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking '
         '--disable-component-update --disable-sync --disable-breakpad --disable-crash-reporter '
         '--disable-dev-shm-usage --window-size=1400,1000').split()

def find():
    "Path of a Chromium or Chrome, or None."
    return next((p for n in ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable',
                             'chrome') if (p := shutil.which(n))), None)

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

def wait(what, seconds, of, every=.1):
    "Until `what()` is true; an error that says what was waited for."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if v := what(): return v
        time.sleep(every)
    raise TimeoutError(f'{of}: not within {seconds} s')

def ours(folder):
    "Processes, other than this one, that name the folder in their arguments or environment."
    out, mark = [], str(folder).encode()
    for p in Path('/proc').iterdir():
        if not p.name.isdecimal() or int(p.name) == os.getpid(): continue
        try:
            if mark in (p/'cmdline').read_bytes() or mark in (p/'environ').read_bytes():
                if (p/'stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z': out.append(int(p.name))
        except OSError: pass
    return out

def end(process, folder, seconds=10):
    "End a process and whatever it left behind that names our own new folder."
    process.terminate()
    try: process.wait(seconds)
    except subprocess.TimeoutExpired: process.kill(); process.wait()
    for sig in (signal.SIGTERM, signal.SIGKILL):
        for pid in ours(folder):
            try: os.kill(pid, sig)
            except ProcessLookupError: pass
        try: return wait(lambda: not ours(folder), 3, 'processes to end')
        except TimeoutError: pass

class Page:
    "One tab, driven over its websocket."
    def __init__(self, url):
        import websocket
        self.ws, self.n = websocket.create_connection(url, suppress_origin=True, timeout=30), 0
        self.send('Page.enable')
        self.send('Page.bringToFront')
        self.send('Emulation.setFocusEmulationEnabled', enabled=True) # JupyterLab's current widget is the focused one

    def send(self, method, **params):
        self.n += 1
        self.ws.send(json.dumps(dict(id=self.n, method=method, params=params)))
        while True: # events come in between
            r = json.loads(self.ws.recv())
            if r.get('method') == 'Page.javascriptDialogOpening': # "leave this page?" would block everything
                self.ws.send(json.dumps(dict(id=0, method='Page.handleJavaScriptDialog', params=dict(accept=True))))
            if r.get('id') == self.n:
                if 'error' in r: raise RuntimeError(f'{method}: {r["error"]}')
                return r['result']

    def js(self, code):
        "The value of an expression; a promise is waited for."
        r = self.send('Runtime.evaluate', expression=code, awaitPromise=True, returnByValue=True)
        if 'exceptionDetails' in r:
            raise RuntimeError(f'{code}: '
                               f'{r["exceptionDetails"].get("exception", r["exceptionDetails"]).get("description")}')
        return r['result'].get('value')

    def wait(self, code, seconds=20): return wait(lambda: self.js(code), seconds, code)
    def open(self, url): self.send('Page.navigate', url=url)

    def click(self, element):
        "A real mouse press and release in the middle of an element, given as a JavaScript expression."
        x, y = self.js(f'(() => {{const e = {element}; e.scrollIntoView({{block: "center"}}); const r = '
                       f'e.getBoundingClientRect(); '
                       f'return [r.x + r.width/2, r.y + r.height/2]}})()')
        for kind in ('mouseMoved', 'mousePressed', 'mouseReleased'):
            self.send('Input.dispatchMouseEvent', type=kind, x=x, y=y, button='none'
                      if kind == 'mouseMoved' else 'left', clickCount=1)

    def press(self, key):
        "A real key: a letter, a digit, or a name such as ArrowRight."
        one = len(key) == 1
        code, number = (f'Key{key.upper()}' if key.isalpha() else f'Digit{key}',
                        ord(key.upper())) if one else (key, dict(ArrowLeft=37, ArrowRight=39, Escape=27, Home=36,
                                                                 Delete=46)[key])
        for kind in ('keyDown', 'keyUp'):
            self.send('Input.dispatchKeyEvent', type=kind, key=key, code=code, windowsVirtualKeyCode=number,
                      **(dict(text=key) if one and kind == 'keyDown' else {}))

    def write(self, text): self.send('Input.insertText', text=text)

    def resize(self, width, height=1000):
        self.send('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=False)

    def drag(self, a, b, steps=4):
        "Press at a, move to b, let go; (x, y) on the screen."
        put = lambda kind, p, button='left': self.send(
            'Input.dispatchMouseEvent', type=kind, x=p[0], y=p[1], button=button,
            buttons=int(kind != 'mouseReleased' and button == 'left'), clickCount=1)
        put('mouseMoved', a, 'none'); put('mousePressed', a)
        for k in range(1, steps + 1): put('mouseMoved', [u + (v - u)*k/steps for u, v in zip(a, b)])
        put('mouseReleased', b)

    def picture(self, path): Path(path).write_bytes(base64.b64decode(self.send('Page.captureScreenshot')['data']))

@contextmanager
def chromium(folder):
    "A page in a headless browser whose profile is a new folder inside `folder`."
    profile = Path(folder)/'profile'
    profile.mkdir()
    log = open(Path(folder)/'chromium.log', 'wb')
    p = subprocess.Popen([find(), *FLAGS, f'--user-data-dir={profile}', '--remote-debugging-port=0', 'about:blank'],
                         stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        at = profile/'DevToolsActivePort'
        wait(lambda: p.poll() is not None or at.exists() and at.read_text().count('\n'), 30, 'Chromium to start')
        if p.poll() is not None:
            raise RuntimeError(f'Chromium ended with {p.returncode}: '
                               f'{(Path(folder)/"chromium.log").read_text()[-2000:]}')
        tabs = json.load(urllib.request.urlopen(f'http://127.0.0.1:{at.read_text().split()[0]}/json/list', timeout=10))
        page = Page(next(t['webSocketDebuggerUrl'] for t in tabs if t['type'] == 'page'))
        try: yield page
        except Exception: page.picture(Path(folder)/'failed.png'); raise
        page.ws.close()
    finally:
        end(p, profile)
        log.close()

@contextmanager
def lab(folder, notebooks, ours=False, **more):
    """JupyterLab over a folder of notebooks, or as `yolokit lab` starts it; its settings and sockets stay in `folder`,
    `more` goes into its environment. Gives a function: path -> url; '': what it opens by itself."""
    port, token, log = free_port(), os.urandom(12).hex(), Path(folder)/'lab.log'
    home = Path(folder)/'jupyter'
    # no question about news over the page
    news = home/'lab_settings'/'@jupyterlab'/'apputils-extension'/'notification.jupyterlab-settings'
    news.parent.mkdir(parents=True)
    news.write_text('{"fetchNews": "false"}')
    env = os.environ | {f'JUPYTER{k}_DIR': str(home/k.strip('_').lower())
                        for k in ('_CONFIG', '_RUNTIME', 'LAB_SETTINGS', 'LAB_WORKSPACES')} | dict(
        IPYTHONDIR=str(home/'ipython')) | more
    start = [sys.executable, '-m', *(('yolokit', 'lab') if ours else
                                     ('jupyterlab', '--allow-root', f'--ServerApp.root_dir={notebooks}'))]
    args = [*start, '--no-browser', '--ip=127.0.0.1', f'--port={port}',
            '--ServerApp.port_retries=0', f'--IdentityProvider.token={token}',
            '--expose-app-in-browser', '--LabApp.news_url=None',
            '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate']
    with open(log, 'wb') as f: p = subprocess.Popen(args, env=env, stdout=f, stderr=f, stdin=subprocess.DEVNULL)
    def up():
        if p.poll() is not None: raise RuntimeError(f'JupyterLab ended with {p.returncode}: {log.read_text()[-2000:]}')
        try: return urllib.request.urlopen(f'http://127.0.0.1:{port}/api/status?token={token}', timeout=2).status == 200
        except OSError: return False
    try:
        wait(up, 40, 'JupyterLab to answer')
        yield lambda path: f'http://127.0.0.1:{port}/{path and f"lab/tree/{path}"}?token={token}&reset'
    finally: end(p, home)
