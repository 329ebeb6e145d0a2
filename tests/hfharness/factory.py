"""Specs to classes of tests."""

import copy
import json
import os
import subprocess
import sys
import tempfile
import unittest

from .extras import OutOfTreeChecks
from .spec import FeatureExtractorSpec, ImageProcessorSpec, ModelSpec, PipelineSpec, RemoteCodeSpec, VideoProcessorSpec
from .upstream import load_upstream

# ending of a class name -> table of transformers that upstream looks the name up in
_SUFFIX_TO_MAPPING = (
    ("ForPreTraining", "MODEL_FOR_PRETRAINING_MAPPING_NAMES"),
    ("ForAudioClassification", "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES"),
    ("ForImageClassification", "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES"),
    ("ForVideoClassification", "MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES"),
    ("ForSequenceClassification", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES"),
    ("Model", "MODEL_MAPPING_NAMES"),
)


def register_names(classes):
    """Puts class names into the tables by which upstream decides what head gets `labels` and what class has no loss.

    It does nothing else: `_LazyAutoMapping` looks at the configs of transformers alone.
    """
    from transformers.models.auto import modeling_auto

    for cls in classes:
        table = next((m for s, m in _SUFFIX_TO_MAPPING if cls.__name__.endswith(s)), None)
        if table:
            getattr(modeling_auto, table)[f"oot::{cls.__name__}"] = cls.__name__


def _apply_skips(ns, bases, skip):
    for name, reason in skip.items():
        if not any(hasattr(b, name) for b in bases):
            raise AttributeError(f"skip list names an unknown test: {name}")
        ns[name] = unittest.skip(reason)(lambda self: None)
        ns[name].__name__ = name


def make_model_test(spec: ModelSpec):
    up = load_upstream()
    config_cls = spec.config
    classes = tuple(c for c in spec.classes)
    register_names(classes)
    import torch
    from transformers.testing_utils import torch_device

    class Tester:
        """The attributes ModelTesterMixin reads from `self.model_tester`."""

        def __init__(self, parent):
            self.parent = parent
            self.batch_size = spec.batch_size
            self.seq_length = spec.seq_length
            self.encoder_seq_length = spec.seq_length
            self.key_length = spec.seq_length
            self.hidden_size = spec.hidden_size
            self.num_hidden_layers = spec.num_hidden_layers
            self.num_attention_heads = spec.num_attention_heads
            self.num_labels = spec.num_labels
            self.is_training = True
            if spec.num_masks is not None:
                self.num_masks = spec.num_masks
                self.mask_length = spec.mask_length or spec.seq_length
            for k, v in spec.extra.items():
                setattr(self, k, v)

        def get_config(self):
            return config_cls(**copy.deepcopy(spec.config_kwargs))

        def prepare_config_and_inputs(self):
            config = self.get_config()
            return config, spec.inputs(config, self.batch_size, torch)

        def prepare_config_and_inputs_for_common(self):
            config, inputs = self.prepare_config_and_inputs()
            return config, {k: v.to(torch_device) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}

    def setUp(self):
        self.model_tester = Tester(self)
        self.config_tester = up.ConfigTester(
            self, config_class=config_cls, has_text_modality=False, **copy.deepcopy(spec.config_kwargs)
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        out = up.ModelTesterMixin._prepare_for_class(self, inputs_dict, model_class, return_labels=return_labels)
        fn = spec.per_class_inputs.get(model_class.__name__)
        if fn is not None:
            out = fn(self.model_tester.get_config(), self.model_tester.batch_size, torch, out, return_labels)
        return out

    def test_model_get_set_embeddings(self):
        # upstream's wants the nn.Embedding of a text model; its own tests of image and audio models override it so
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            self.assertIsInstance(model.get_input_embeddings(), torch.nn.Module)
            x = model.get_output_embeddings()
            self.assertTrue(x is None or isinstance(x, torch.nn.Linear))

    ns = {
        "test_model_get_set_embeddings": test_model_get_set_embeddings,
        "all_model_classes": classes,
        "has_attentions": spec.has_attentions,
        "test_resize_embeddings": spec.resize_embeddings,
        "test_all_params_have_gradient": spec.all_params_have_gradient,
        # without a line "# Copyright <year>" in the config's file upstream leaves out the test of initialisation
        "test_can_init_all_missing_weights_before_2023": True,
        "test_torch_exportable": False,
        "setUp": setUp,
        "test_config": test_config,
        "_prepare_for_class": _prepare_for_class,
        "__module__": __name__,
    }
    _apply_skips(ns, (up.ModelTesterMixin, OutOfTreeChecks), spec.skip)
    return type(f"{spec.name}ModelTest", (OutOfTreeChecks, up.ModelTesterMixin, unittest.TestCase), ns)


def make_feature_extractor_test(spec: FeatureExtractorSpec):
    up = load_upstream()
    cls = spec.cls
    base = up.SequenceFeatureExtractionTestMixin if spec.sequence else up.FeatureExtractionSavingTestMixin

    class Tester:
        def __init__(self, parent):
            self.parent = parent
            self.batch_size = spec.batch_size
            self.min_seq_length, self.max_seq_length = spec.min_seq_length, spec.max_seq_length
            self.seq_length_diff = (spec.max_seq_length - spec.min_seq_length) // (spec.batch_size - 1)
            self.feature_size = spec.feature_size
            self.padding_value = spec.init.get("padding_value", 0.0)

        def prepare_feat_extract_dict(self):
            return copy.deepcopy(spec.init)

        def prepare_inputs_for_common(self, equal_length=False, numpify=False):
            import numpy as np

            rng = np.random.default_rng(0)
            lens = (
                [self.max_seq_length] * self.batch_size
                if equal_length
                else list(range(self.min_seq_length, self.max_seq_length, self.seq_length_diff))
            )
            shape = (lambda n: (n, self.feature_size)) if self.feature_size > 1 else (lambda n: (n,))
            out = [rng.random(shape(n)).astype(np.float32) for n in lens]
            return out if numpify else [o.tolist() for o in out]

    def setUp(self):
        self.feat_extract_tester = Tester(self)

    ns = {
        "feature_extraction_class": cls,
        "setUp": setUp,
        "feat_extract_dict": property(lambda self: copy.deepcopy(spec.init)),
        "__module__": __name__,
    }
    _apply_skips(ns, (base,), spec.skip)
    return type(f"{spec.name}FeatureExtractorTest", (base, unittest.TestCase), ns)


def make_image_processor_test(spec: ImageProcessorSpec):
    up = load_upstream()
    backends = {k: v for k, v in spec.backends.items()}

    class Tester(up.ImageProcessingTester):
        def __init__(self, parent, **kwargs):
            for k, v in copy.deepcopy(spec.init).items():
                kwargs.setdefault(k, v)
            super().__init__(parent, **kwargs)

        def _get_image_processing_classes(self):
            return dict(backends)

        def expected_output_image_shape(self, images):
            return spec.size

    ns = {"image_processor_tester_class": Tester, "__module__": __name__}
    _apply_skips(ns, (up.ImageProcessingTestMixin,), spec.skip)
    return type(f"{spec.name}ImageProcessorTest", (up.ImageProcessingTestMixin, unittest.TestCase), ns)


def make_video_processor_test(spec: VideoProcessorSpec):
    up = load_upstream()
    cls = spec.cls

    class Tester:
        def __init__(self):
            self.batch_size = spec.batch_size
            self.num_frames = spec.num_frames
            self.num_channels = spec.num_channels
            self.min_resolution, self.max_resolution = 30, 80

        def expected_output_video_shape(self, videos):
            return self.num_frames, self.num_channels, spec.crop, spec.crop

        def prepare_video_processor_dict(self):
            return copy.deepcopy(spec.init)

        def prepare_video_inputs(self, equal_resolution=False, return_tensors="pil"):
            videos = up.video_common.prepare_video_inputs(
                batch_size=self.batch_size,
                num_frames=self.num_frames,
                num_channels=self.num_channels,
                min_resolution=self.min_resolution,
                max_resolution=self.max_resolution,
                equal_resolution=equal_resolution,
                return_tensors=return_tensors,
            )
            return videos

    def setUp(self):
        up.VideoProcessingTestMixin.setUp(self)
        self.video_processor_tester = Tester()

    ns = {
        "fast_video_processing_class": cls,
        "input_name": spec.input_name,
        "setUp": setUp,
        "video_processor_dict": property(lambda self: copy.deepcopy(spec.init)),
        "__module__": __name__,
    }
    _apply_skips(ns, (up.VideoProcessingTestMixin,), spec.skip)
    return type(f"{spec.name}VideoProcessorTest", (up.VideoProcessingTestMixin, unittest.TestCase), ns)


def make_pipeline_test(spec: PipelineSpec):
    """In place of `PipelineTesterMixin`, without the Hub: from objects, from a folder, in bfloat16, and in batches."""

    def _build(self, tmp):
        config = spec.config(**copy.deepcopy(spec.config_kwargs))
        model = spec.model(config).eval()
        proc = spec.processor(**copy.deepcopy(spec.processor_kwargs))
        model.save_pretrained(tmp)
        proc.save_pretrained(tmp)
        return model, proc

    def _run(self, pipe, tmp):
        out = pipe(spec.example(tmp))
        spec.check(self, out)
        n, kw = (10, {"batch_size": 4}) if spec.batching else (2, {})
        self.assertEqual(len(list(pipe([spec.example(tmp) for _ in range(n)], **kw))), n)

    def test_objects(self):
        from transformers import pipeline

        with tempfile.TemporaryDirectory() as tmp:
            model, proc = _build(self, tmp)
            _run(self, pipeline(spec.task, model=model, device="cpu", **{spec.processor_kw: proc}), tmp)

    def test_folder(self):
        from transformers import pipeline

        with tempfile.TemporaryDirectory() as tmp:
            _build(self, tmp)
            _run(self, pipeline(spec.task, model=tmp, device="cpu"), tmp)

    def test_folder_bf16(self):
        import torch
        from transformers import pipeline

        with tempfile.TemporaryDirectory() as tmp:
            _build(self, tmp)
            _run(self, pipeline(spec.task, model=tmp, device="cpu", dtype=torch.bfloat16), tmp)

    name = "".join(p.title() for p in spec.task.split("-"))
    return type(
        f"{name}PipelineTest",
        (unittest.TestCase,),
        {
            "test_objects": test_objects,
            "test_folder": test_folder,
            "test_folder_bf16": test_folder_bf16,
            "__module__": __name__,
        },
    )


_CHILD = """
import os, sys, json
os.environ["HF_HOME"] = sys.argv[2]; os.environ["HF_HUB_OFFLINE"] = "1"
spec = json.loads(sys.argv[3])
class _Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in spec["forbidden"]:
            raise ModuleNotFoundError(f"No module named {name!r} (forbidden here)", name=name)
sys.meta_path.insert(0, _Block())
import transformers
res = {}
for auto in spec["auto"]:
    try:
        obj = getattr(transformers, auto).from_pretrained(sys.argv[1], trust_remote_code=True)
        res[auto] = [type(obj).__module__, type(obj).__name__]
    except Exception as e:
        res[auto] = ["ERROR", f"{type(e).__name__}: {e}"]
print("@@" + json.dumps(res))
"""


def make_remote_code_test(spec: RemoteCodeSpec):
    def test_remote_code(self):
        config = spec.config(**copy.deepcopy(spec.config_kwargs))
        spec.config.register_for_auto_class()
        auto_map = {"AutoConfig": _ref(spec.config)}
        for auto, cls in spec.auto_classes.items():
            auto_map[auto] = _ref(cls)
        model_cls = spec.model
        model_cls.register_for_auto_class(next(a for a, c in spec.auto_classes.items() if c is model_cls))
        try:
            with tempfile.TemporaryDirectory() as tmp, tempfile.TemporaryDirectory() as home:
                model = model_cls(config)
                model.config.auto_map = auto_map
                model.save_pretrained(tmp)
                want = {"AutoConfig": spec.config.__name__}
                want.update({a: c.__name__ for a, c in spec.auto_classes.items()})
                for auto, (cls, kw) in spec.processors.items():
                    cls.register_for_auto_class(auto)
                    cls(**kw).save_pretrained(tmp)
                    want[auto] = cls.__name__
                payload = json.dumps({"forbidden": list(spec.forbidden), "auto": list(want)})
                env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "HF_HOME", "HF_MODULES_CACHE")}
                command = [sys.executable, "-c", _CHILD, tmp, home, payload]
                done = subprocess.run(command, capture_output=True, text=True, cwd=home, env=env)
                found = [line for line in done.stdout.splitlines() if line.startswith("@@")]
                self.assertTrue(found, done.stdout + done.stderr)
                got = json.loads(found[0][2:])
                for auto, cls_name in want.items():
                    mod, name = got[auto]
                    self.assertEqual(name, cls_name, f"{auto}: {got[auto]}")
                    self.assertTrue(mod.startswith("transformers_modules."), f"{auto} came from {mod}")
        finally:
            for c in [spec.config, model_cls, *[c for c, _ in spec.processors.values()]]:
                c._auto_class = None

    return type(
        f"{spec.name}RemoteCodeTest",
        (unittest.TestCase,),
        {"test_remote_code": test_remote_code, "__module__": __name__},
    )


def _ref(cls):
    return f"{cls.__module__.rsplit('.', 1)[-1]}.{cls.__name__}"


_MAKERS = {
    ModelSpec: make_model_test,
    FeatureExtractorSpec: make_feature_extractor_test,
    ImageProcessorSpec: make_image_processor_test,
    VideoProcessorSpec: make_video_processor_test,
    PipelineSpec: make_pipeline_test,
    RemoteCodeSpec: make_remote_code_test,
}


def make_tests(specs, module=None):
    """[spec, ...] -> {class name: TestCase}. `globals().update(make_tests(SPECS, __name__))` in a test module."""
    out = {}
    for s in specs:
        cls = _MAKERS[type(s)](s)
        cls.__qualname__ = cls.__name__
        if module:
            cls.__module__ = module
        out[cls.__name__] = cls
    return out
