"The compose file and the Dockerfile, as far as they can be judged without an engine: neither is built here."
import re
from pathlib import Path

import jsonschema, pytest, yaml
from yolokit.apps import config
from yolokit.apps.train import TrainConfig

ROOT = Path(__file__).parents[1]
TEXT = dict(type='string', minLength=1)
def obj(required=(), **props):
    return dict(type='object', properties=props, required=list(required), additionalProperties=False)
def many(item): return dict(type='array', items=item, minItems=1)
GPU = obj(driver=TEXT, count=dict(type=['string', 'integer']), capabilities=many(TEXT))
# what a service may hold, restated from the compose specification (compose-spec.json)
SERVICE = obj(('image',), build=obj(context=TEXT, target=TEXT, dockerfile=TEXT), image=TEXT, user=TEXT, shm_size=TEXT,
              stop_grace_period=TEXT, volumes=many(TEXT), command=many(TEXT), profiles=many(TEXT), ports=many(TEXT),
              environment=dict(type='object'),
              deploy=obj(resources=obj(reservations=obj(devices=many(GPU)))))
COMPOSE = dict(type='object', properties=dict(services=dict(type='object', additionalProperties=SERVICE)),
               patternProperties={'^x-': {}}, required=['services'], additionalProperties=False)


def test_the_compose_file_is_one():
    c = yaml.safe_load((ROOT/'deploy/compose.yaml').read_text())
    jsonschema.validate(c, COMPOSE)
    targets = re.findall(r'^FROM \S+ AS (\w+)', (ROOT/'Dockerfile').read_text(), re.M)
    for name, s in c['services'].items():
        assert s['build']['target'] in targets
        assert (ROOT/'deploy'/s['build']['context']/'Dockerfile').is_file()
        gpu = 'deploy' in s
        assert gpu == (name == 'train')                         # the others start on a machine without one
        if s['command'][:2] == ['yolokit', 'train']:
            given = dict(w.split('=', 1) for w in s['command'][2:])
            config.make_config(given | dict(stage=given['stage'].replace('${STAGE:-', '').rstrip('}')), TrainConfig)
    c['services']['train']['gpu'] = 'all'
    with pytest.raises(jsonschema.ValidationError): jsonschema.validate(c, COMPOSE)


def test_the_runtime_image_has_neither_lab_nor_tests():
    text = (ROOT/'Dockerfile').read_text()
    extras = re.search(r'RUN make setup EXTRAS=(\S+)', text)[1].split(',')
    import tomllib
    known = tomllib.loads((ROOT/'pyproject.toml').read_text())['project']['optional-dependencies']
    assert set(extras) <= set(known) and not {'lab', 'dev', 'docs'} & set(extras)
    assert 'EXTRAS ?= lab,dev' in (ROOT/'Makefile').read_text()
    assert 'Not built' in text and '--user' in text and 'my-photos:ro' in text
