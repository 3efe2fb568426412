"The one downloader against a server on this machine that cuts, lies, changes its mind, or has nothing."
import hashlib, signal, subprocess, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from yolokit.core import download as core_download
from yolokit.core.files import sha256
from yolokit.core.download import download, DownloadError
from yolokit.network import pretrained, weights, zoo
from yolokit.network.model import Detector, state_hash
from yolokit.apps.config import resolve_weights

BODY = np.random.Generator(np.random.Philox(1)).bytes(1 << 20)
RIGHT = hashlib.sha256(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    "Does what `server.how` says; writes down what it was asked for."
    def log_message(self, *_): pass

    def do_GET(self):
        s, range_ = self.server, self.headers.get('Range')
        s.asked.append((self.path, range_, self.headers.get('If-Range')))
        how = s.how.pop(0) if len(s.how) > 1 else s.how[0]
        body, tag = how.get('body', BODY), how.get('tag', '"one"')
        if 'code' in how: return self.send_error(how['code'])
        if 'to' in how: return self.head(302, Location=how['to'])
        first = int(range_[6:-1]) if range_ and how.get('ranges', True) else 0
        if first and (how.get('heeds', True) and self.headers.get('If-Range', tag) != tag): first = 0
        if first >= len(body): return self.send_error(416)
        more = {'ETag': tag} if tag else {}
        if first: more['Content-Range'] = how.get('says', f'bytes {first}-{len(body) - 1}/{len(body)}')
        if how.get('length', True): more['Content-Length'] = str(len(body) - first)
        self.head(206 if first else 200, **{'Content-Type': how.get('type', 'application/octet-stream')}, **more)
        for i in range(first, first + min(how.get('cut', len(body)), len(body) - first), 1 << 14):
            self.wfile.write(body[i:min(i + (1 << 14), first + how.get('cut', len(body)))])
            time.sleep(how.get('slow', 0))

    def head(self, code, **headers):
        self.send_response(code)
        for k, v in headers.items(): self.send_header(k, v)
        self.end_headers()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(core_download, '_BACKOFF', .001)
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    s = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    s.handle_error = lambda *_: None                                             # a client that hangs up is no news
    s.how, s.asked, s.url = [{}], [], f'http://127.0.0.1:{s.server_port}'
    threading.Thread(target=s.serve_forever, kwargs=dict(poll_interval=.01), daemon=True).start()
    yield s
    s.shutdown(); s.server_close()


def only(folder, *names): assert sorted(p.name for p in folder.iterdir()) == sorted(names)


def test_goes_on_after_every_cut_and_leaves_nothing_else(server, tmp_path, capsys):
    server.how = [dict(cut=300_000), dict(cut=300_001), dict(cut=1), {}]
    got = download(server.url + '/a', tmp_path/'deep/er/a.bin', RIGHT, len(BODY))
    assert got.read_bytes() == BODY and [a[1] for a in server.asked] == [None, 'bytes=300000-', 'bytes=600001-',
                                                                         'bytes=600002-']
    assert {a[2] for a in server.asked[1:]} == {'"one"'}
    only(tmp_path/'deep/er', 'a.bin')
    assert 'the line broke at byte 300,000 of 1,048,576' in capsys.readouterr().out
    download(server.url + '/a', got, RIGHT); assert len(server.asked) == 4        # there already: nothing is asked


def test_a_dead_line_gives_up_and_the_next_call_goes_on(server, tmp_path):
    server.how = [dict(cut=500_000), dict(cut=0)]
    with pytest.raises(DownloadError, match='500,000 bytes are kept: call again'):
        download(server.url + '/a', tmp_path/'a')
    assert len(server.asked) == 1 + core_download._RETRIES - 1
    only(tmp_path, '.a.part', '.a.part.json')
    server.how = [{}]
    assert sha256(download(server.url + '/a', tmp_path/'a')) == RIGHT
    assert server.asked[-1][1] == 'bytes=500000-'; only(tmp_path, 'a')


def test_wrong_checksum_is_refused_and_thrown_away(server, tmp_path):
    with pytest.raises(DownloadError, match=f'has the sha256 {RIGHT} instead of 0000'):
        download(server.url + '/a', tmp_path/'a', '0'*64)
    only(tmp_path)
    assert download(server.url + '/a', tmp_path/'a', RIGHT.upper()).read_bytes() == BODY


def test_wrong_size_is_refused_before_a_byte_is_kept(server, tmp_path):
    with pytest.raises(DownloadError, match='the file there has 1,048,576 bytes. It should have 7'):
        download(server.url + '/a', tmp_path/'a', size=7)
    # a server that does not say: refused afterwards
    server.how = [dict(length=False)]
    with pytest.raises(DownloadError, match='more than the 7 bytes of the file came'):
        download(server.url + '/b', tmp_path/'b', size=7)
    assert not (tmp_path/'a').exists() and not (tmp_path/'b').exists()


@pytest.mark.parametrize('code, words', [(404, 'the server says 404.*out of date'), (410, '410'),
                                         (403, '403.*permission'), (401, '401.*login')])
def test_refusals_are_final(server, tmp_path, code, words):
    server.how = [dict(code=code)]
    with pytest.raises(DownloadError, match=words): download(server.url + '/a', tmp_path/'a')
    assert len(server.asked) == 1
    only(tmp_path)


@pytest.mark.parametrize('code', core_download._RETRY_STATUSES)
def test_busy_servers_are_asked_again(server, tmp_path, code):
    server.how = [dict(code=code), dict(code=code), {}]
    assert download(server.url + '/a', tmp_path/'a', RIGHT).exists() and len(server.asked) == 3


def test_server_without_ranges_starts_anew(server, tmp_path):
    server.how = [dict(cut=700_000, ranges=False), dict(ranges=False)]
    assert sha256(download(server.url + '/a', tmp_path/'a')) == RIGHT


@pytest.mark.parametrize('heeds', [True, False], ids=['sent whole', 'continued all the same'])
def test_content_that_changes_in_between_is_not_mixed(server, tmp_path, heeds):
    new = bytes(1 << 20) + b'more'
    server.how = [dict(cut=700_000), dict(body=new, tag='"two"', heeds=heeds)]
    assert download(server.url + '/a', tmp_path/'a').read_bytes() == new


def test_content_that_shrank_below_the_part(server, tmp_path):
    server.how = [dict(cut=700_000), dict(body=b'short', tag='"two"', heeds=False)]
    assert download(server.url + '/a', tmp_path/'a').read_bytes() == b'short'


def test_same_size_without_validator_is_caught_by_the_checksum(server, tmp_path):
    new = bytes(len(BODY))
    server.how = [dict(cut=700_000, tag=''), dict(body=new, tag='')]
    with pytest.raises(DownloadError, match='sha256'):
        download(server.url + '/a', tmp_path/'a', hashlib.sha256(new).hexdigest())
    assert download(server.url + '/a', tmp_path/'a', hashlib.sha256(new).hexdigest()).read_bytes() == new


@pytest.mark.parametrize('tag', ['', 'W/"weak"'])
def test_without_validator_and_checksum_a_part_is_not_trusted(server, tmp_path, tag):
    server.how = [dict(cut=700_000, tag=tag), dict(tag=tag)]
    download(server.url + '/a', tmp_path/'a')
    assert [a[1] for a in server.asked] == [None, None]


def test_a_lying_range_is_refused(server, tmp_path):
    server.how = [dict(cut=700_000), dict(says='bytes 0-9/10')]
    with pytest.raises(DownloadError, match='asked for the bytes from 700000 on'):
        download(server.url + '/a', tmp_path/'a')


def test_a_part_of_another_address_is_not_continued(server, tmp_path):
    server.how = [dict(cut=500_000), dict(cut=0)]
    with pytest.raises(DownloadError): download(server.url + '/a', tmp_path/'a')
    server.how = [{}]
    download(server.url + '/b', tmp_path/'a', RIGHT)
    assert server.asked[-1][1] is None


def test_a_whole_part_needs_no_server(server, tmp_path, monkeypatch):
    monkeypatch.setattr(core_download, '_find_mismatch', lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt): download(server.url + '/a', tmp_path/'a', RIGHT)
    monkeypatch.undo()
    assert not (tmp_path/'a').exists()
    server.how = [dict(code=404)]
    assert sha256(download(server.url + '/a', tmp_path/'a', RIGHT)) == RIGHT


def test_a_web_page_is_no_file(server, tmp_path):
    server.how = [dict(body=b'<html>Sign in</html>', type='text/html; charset=utf-8')]
    with pytest.raises(DownloadError, match='a web page came instead'):
        download(server.url + '/a', tmp_path/'a.weights')
    assert download(server.url + '/a', tmp_path/'a.html').exists()


def test_redirects_are_followed_and_ranges_go_along(server, tmp_path):
    server.how = [dict(to='/real'), dict(cut=9), dict(to='/real'), {}]
    assert sha256(download(server.url + '/a', tmp_path/'a')) == RIGHT
    assert [a[:2] for a in server.asked] == [('/a', None), ('/real', None), ('/a', 'bytes=9-'), ('/real', 'bytes=9-')]


def test_https_does_not_become_http():
    import urllib.request
    with pytest.raises(DownloadError, match='not encrypted'):
        core_download._HttpsRedirects().redirect_request(urllib.request.Request('https://a/b'), None, 302, '', {},
                                                        'http://a/b')


def test_what_is_there_is_never_overwritten(server, tmp_path):
    (tmp_path/'a').write_bytes(b'mine'); (tmp_path/'f').mkdir()
    for name, words, how in (('a', 'has 4 bytes instead of 5', dict(size=5)), ('a', 'sha256', dict(sha256=RIGHT)),
                             ('f', 'is no file', {})):
        with pytest.raises(DownloadError, match=words): download(server.url + '/a', tmp_path/name, **how)
    assert (tmp_path/'a').read_bytes() == b'mine' and not server.asked


def test_a_full_disk_is_said_beforehand(server, tmp_path, monkeypatch):
    monkeypatch.setattr(core_download.shutil, 'disk_usage', lambda p: type('U', (), dict(free=1000)))
    with pytest.raises(DownloadError, match='1,000 bytes are free, 1,048,576 are to come'):
        download(server.url + '/a', tmp_path/'a')


def test_nobody_there(tmp_path, monkeypatch):
    monkeypatch.setattr(core_download, '_BACKOFF', .001)
    monkeypatch.setenv('no_proxy', '*')
    with pytest.raises(DownloadError, match='refused.*0 bytes are kept'): download('http://127.0.0.1:9/a', tmp_path/'a')
    for bad in ('ftp://x/a', 'a.weights', '/etc/passwd', 'file:///etc/passwd'):
        with pytest.raises(DownloadError, match='begins with http'): download(bad, tmp_path/'a')


PROGRAM = 'import sys; from yolokit.core.download import download; download(*sys.argv[1:4])'
def process(server, tmp_path):
    return subprocess.Popen([sys.executable, '-c', PROGRAM, server.url + '/a', str(tmp_path/'a'), RIGHT],
                            stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def test_killed_in_the_middle_and_started_again(server, tmp_path):
    server.how = [dict(slow=.02), dict()]
    p = process(server, tmp_path)
    began = time.time()
    while ((not (tmp_path/'.a.part').exists() or (tmp_path/'.a.part').stat().st_size < 1 << 18)
           and time.time() < began + 30):
        time.sleep(.01)
    p.send_signal(signal.SIGKILL); p.wait()
    have = (tmp_path/'.a.part').stat().st_size
    assert 0 < have < len(BODY) and not (tmp_path/'a').exists()
    assert sha256(download(server.url + '/a', tmp_path/'a', RIGHT)) == RIGHT and server.asked[-1][1] == f'bytes={have}-'


def test_two_processes_fetch_once(server, tmp_path):
    server.how = [dict(slow=.01)]
    both = [process(server, tmp_path) for _ in 'ab']
    assert [p.wait(60) for p in both] == [0, 0]
    assert sha256(tmp_path/'a') == RIGHT and len(server.asked) == 1
    only(tmp_path, 'a')


# ---- published weights, from a server that has some of them



@pytest.fixture
def house(server, tmp_path, monkeypatch):
    "A published network small enough to make: yolov4-tiny's file, of random numbers, under its own name."
    monkeypatch.setenv('YOLOKIT_CACHE', str(tmp_path/'cache'))
    d = Detector(zoo.build('yolov4-tiny'), seed=3)
    weights.write_weights(d, tmp_path/'w', seen=7)
    server.how, server.detector, server.body = [dict(body=(tmp_path/'w').read_bytes())], d, (tmp_path/'w').read_bytes()
    monkeypatch.setitem(pretrained.DARKNET, 'yolov4-tiny', (server.url + '/yolov4-tiny.weights', ''))
    return server


def test_published_weights_by_name(house, tmp_path, monkeypatch):
    house.how = [dict(body=house.body, cut=10**7), dict(body=house.body)]
    d = pretrained.load_pretrained('yolov4-tiny')
    assert (state_hash(d) == state_hash(house.detector) and d.names[2] == 'car'
            and house.asked[-1][1] == 'bytes=10000000-')
    path = resolve_weights('yolov4-tiny')
    assert path == tmp_path/'cache/weights/yolov4-tiny.weights' and len(house.asked) == 2
    note = path.with_name('yolov4-tiny.weights.sha256')
    assert note.read_text() == f'{hashlib.sha256(house.body).hexdigest()}  yolov4-tiny.weights\n'
    path.write_bytes(house.body[:-1] + b'\0')                                     # a damaged disk
    with pytest.raises(DownloadError, match='is there already, but has the sha256'): pretrained.fetch('yolov4-tiny')
    path.unlink()
    house.how = [dict(body=bytes(len(house.body)), tag='"two"')]                  # another file under the same address
    with pytest.raises(DownloadError, match='what came has the sha256'): pretrained.fetch('yolov4-tiny')
    assert not path.exists()


def test_published_weights_of_another_network_are_not_fetched(house):
    house.how = [dict(body=house.body[:-4])]
    with pytest.raises(DownloadError, match='has 24,251,272 bytes. It should have 24,251,276'):
        pretrained.fetch('yolov4-tiny')


def test_published_checksum_that_does_not_fit(house, monkeypatch):
    monkeypatch.setitem(pretrained.DARKNET, 'yolov4-tiny', (house.url + '/yolov4-tiny.weights', '0'*64))
    with pytest.raises(DownloadError, match='what came has the sha256'): pretrained.fetch('yolov4-tiny')


def test_published_backbone_goes_in_partially(house, monkeypatch):
    whole = Detector(zoo.build('yolov4-tiny'), seed=3)
    ends = [(r.layer, r.start + r.bytes)
            for r in weights.write_weights(whole, pretrained._weights_cache_dir().parent.parent/'v').rows]
    # darknet partial … 29: the layers 0 … 28
    cut = max(e for i, e in ends if i < 29)
    house.how = [dict(body=house.body[:cut])]
    monkeypatch.setitem(pretrained.BACKBONES, 'yolov4-tiny.conv.29', house.url + '/')
    with pytest.raises(ValueError, match='is a backbone'): pretrained.load_pretrained('yolov4-tiny.conv.29')
    d = Detector(zoo.build('yolov4-tiny', 5), seed=9)
    r = weights.read_weights(d, pretrained.fetch('yolov4-tiny.conv.29'), partial=True)
    assert {x.layer for x in r.rows if x.how == 'read'} == {i for i, _ in ends if i < 29} and r.left == 0


def test_coco_names():
    import json
    from yolokit.core.files import shared_data_dir
    if shared_data_dir() is None: pytest.skip('../shared is not there')
    c = json.loads((shared_data_dir()/'data/coco_val2014_100/instances_val2014_100.json').read_text())['categories']
    assert zoo.COCO_CLASSES == [x['name'] for x in sorted(c, key=lambda x: x['id'])]
