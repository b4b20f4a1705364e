"""Chat templates are run as Hugging Face runs them, and hostile ones neither hang nor leave their sandbox."""

import time

import pytest

from llmasos_xla.data.tokenizers import Characters, ChatTemplate, HuggingFace
from llmasos_xla.deployment.chat import Renderer, TemplateError, turn

pytest.importorskip("jinja2", reason="jinja2 is not installed")

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi <b>&</b>"}]
CHATML = """{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""
LLAMA = """{% if messages[0]['role'] == 'system' %}{% set start = 1 %}{% else %}{% set start = 0 %}{% endif %}
{% for m in messages[start:] %}
    {% if (m.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate') }}
    {% endif %}
    {% if m.role == 'user' %}
{{ bos_token + '[INST] ' + (messages[0].content ~ ' ' if start and loop.first else '') + m.content + ' [/INST]' }}
    {%- endif %}
    {% if loop.index > 20 %}{% break %}{% endif %}
{% endfor %}"""


@pytest.fixture(scope="module")
def render():
    renderer = Renderer()
    yield renderer
    renderer.close()


@pytest.fixture(scope="module")
def brief():
    renderer = Renderer(seconds=1.0)
    yield renderer
    renderer.close()


def test_chatml(render):
    assert render(ChatTemplate(CHATML), MESSAGES) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi <b>&</b><|im_end|>\n<|im_start|>assistant\n"
    )


def test_special_ids_blocks_and_loop_controls(render):
    template = ChatTemplate(LLAMA, {"bos_token": "<s>"})
    assert render(template, MESSAGES) == "<s>[INST] Be brief. Hi <b>&</b> [/INST]"
    with pytest.raises(TemplateError, match="refuses these messages: Roles must alternate"):
        render(template, [*MESSAGES, MESSAGES[1]])


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("{{ messages[1].content | tojson }}", '"Hi <b>&</b>"'),
        ("{{ tools is none and documents is none and add_generation_prompt }}", "True"),
        ("{% generation %}{{ messages | length }}{% endgeneration %}", "2"),
        ("{{ strftime_now('%Y') | int > 2000 }}", "True"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "2"),
        ("{{ raise_exception.__globals__ }}", ""),
        ("a  {# b #}\n   {% if true %}\n c\n   {% endif %}\nd", "a   c\nd"),
    ],
)
def test_what_templates_find_there(text, prompt, render):
    assert render(ChatTemplate(text), MESSAGES) == prompt


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ self._TemplateReference__context.environment }}",
        "{{ '{0.__class__}'.format(messages) }}{{ lipsum.__globals__['os'] }}",
        "{% set x = messages.append(1) %}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ messages | attr('__class__') | attr('__mro__') | first }}{{ undefined_name.really }}",
        "{% if %}",
        "{{ 1 // 0 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for i in range(10**9) %}x{% endfor %}",
    ],
)
def test_what_templates_may_not_do(text, render):
    with pytest.raises(TemplateError, match="refuses these messages: "):
        render(ChatTemplate(text), MESSAGES)


@pytest.mark.parametrize(
    "text",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
        "{{ 'x' * 10**10 }}",
        "{{ 10 ** (10 ** 9) }}",
        "{% set ns = namespace(x='x') %}{% for i in range(50) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
        "{{ '%999999999999d' % 1 }}",
        "{{ [1] * 10**10 }}",
        "{{ 'x' | center(10**10) }}",
        "{{ lipsum(n=10**6) }}",
    ],
)
def test_loops_and_texts_without_end_are_ended(text, brief):
    began = time.monotonic()
    with pytest.raises(TemplateError, match="refuses these messages: "):
        brief(ChatTemplate(text), MESSAGES)
    assert time.monotonic() - began < 4
    assert brief(ChatTemplate("{{ messages[0].role }}"), MESSAGES) == "system"


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'chat templates need jinja2: pip install "llmasos_xla\[chat\]"'):
        Renderer()(ChatTemplate(""), MESSAGES)


def test_without_a_template_it_is_a_play():
    tokenizer = Characters("abcdefghijklmnopqrstuvwxyz:\n ", ["start", "end"])
    found = turn(
        tokenizer, None, [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}], Renderer()
    )
    assert tokenizer.decode(found.ids) == "user: hi\nassistant: ho\nassistant:"
    assert found.ids[0] == tokenizer.special.start
    assert (found.stops, found.ends, found.trimmed) == (("\nuser:",), (), True)


def test_names_of_special_ids_become_these(render):
    tokenizer = Characters("abcdefghijklmnopqrstuvwxyz<>/", ["start", "end"])
    template = ChatTemplate(
        "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", {"bos_token": "<s>", "eos_token": "</s>"}
    )
    found = turn(tokenizer, template, [{"role": "user", "content": "hi"}], render)
    assert found.ids == [0, *tokenizer.pieces("hi"), 1]
    assert (found.stops, found.ends, found.trimmed) == ((), (1,), False)


def test_names_of_special_ids_become_these_by_their_own_tokenizer_too(render):
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    tokenizer = HuggingFace.train(["hi there"] * 3, 300)
    template = ChatTemplate("<start>{{ messages[0].content }}", {})
    found = turn(tokenizer, template, [{"role": "user", "content": "hi"}], render)
    assert found.ids == [tokenizer.special.start, *tokenizer.pieces("hi")]
    assert found.ends == (tokenizer.special.end,)
