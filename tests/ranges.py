"A server on this machine that knows ranges, keeps connections open, and fails as it is told to."
import threading, time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


class _Handler(BaseHTTPRequestHandler):
    protocol_version, disable_nagle_algorithm = 'HTTP/1.1', True
    def log_message(self, *_): pass
    def setup(self): self.server.lines += 1; super().setup()

    def do_GET(self):
        s, said = self.server, self.headers.get('Range')
        s.asked.append((self.path, said))
        how = s.how(len(s.asked), self.path) if said else ''
        if how.isdecimal(): return self.send_error(int(how))
        if how == 'moved': return self.answer(302, b'', Location=f'{self.path}?again')
        path = s.folder/unquote(self.path.partition('?')[0].lstrip('/'))
        if not path.is_file(): return self.send_error(404)
        size = path.stat().st_size
        a, b = map(int, said[6:].split('-')) if said else (0, size - 1)
        with open(path, 'rb', 0) as f:
            f.seek(a)
            data = f.read(b + 1 - a)
        if how == 'stall': time.sleep(s.stall); return self.close()
        if how == 'lie': data = data[:len(data)//2] + bytes([data[len(data)//2] ^ 255]) + data[len(data)//2 + 1:]
        more = {'Content-Range': f'bytes {a + (how == "beside")}-{b + (how == "beside")}/{size}'} if said else {}
        if how == 'whole': return self.answer(200, data)
        if how == 'longer': return self.answer(206, data + b'more', **more)
        self.answer(206 if said else 200, data, how, **more)

    def answer(self, code, data, how='', **headers):
        self.send_response(code)
        for k, v in (headers | {'Content-Length': len(data)}).items(): self.send_header(k, str(v))
        self.end_headers()
        if how == 'cut': self.wfile.write(data[:len(data)//2]); return self.close()
        if how == 'drip':
            for i in range(len(data)):
                self.wfile.write(data[i:i + 1])
                time.sleep(.02)
        self.wfile.write(data)
        if how == 'hangs up': self.close() # after a whole answer, and without a word

    def close(self): self.close_connection = True


@contextmanager
def ranges(folder, how=lambda n, path: ''): # how: number of the request, path -> what goes wrong
    "A server of a folder; its `url`, what it was `asked`, over how many `lines`."
    s = ThreadingHTTPServer(('127.0.0.1', 0), _Handler)
    s.handle_error = lambda *_: None # a client that hangs up is no news
    s.folder, s.how, s.asked, s.lines, s.stall = folder, how, [], 0, .4
    s.url = f'http://127.0.0.1:{s.server_port}'
    threading.Thread(target=s.serve_forever, kwargs=dict(poll_interval=.01), daemon=True).start()
    try: yield s
    finally: s.shutdown(); s.server_close()
