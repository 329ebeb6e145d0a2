"""Makes the modules `tests/test_*_common.py` of transformers' source archive importable.

The archive holds the files `tests/test_*.py` alone. They import what it does not hold, which gets a stub here:

- `.exporters.test_export.ExportTesterMixin`, `.generation.test_utils.GenerationTesterMixin`: empty mixins.
- `.utils.test_configuration_utils.config_common_kwargs`: values of v5.
- `fetch_hub_objects_for_ci.url_to_local_path`: the identity.

`test_pipeline_mixin.py` needs `tests/pipelines` and is not loaded; `factory.make_pipeline_test` covers its ground.
"""

import functools
import importlib
import importlib.metadata
import os
import sys
import tempfile
import types
import warnings
from pathlib import Path
from types import SimpleNamespace

PKG = "hf_upstream_tests"

_STUBS = {
    "__init__.py": "",
    "exporters/__init__.py": "",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/__init__.py": "",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/__init__.py": "",
    # each differs from the default of PreTrainedConfig and can be set on any config
    "utils/test_configuration_utils.py": (
        "config_common_kwargs = {\n"
        "    'return_dict': False, 'output_hidden_states': True, 'output_attentions': True, 'dtype': 'float16',\n"
        "    'chunk_size_feed_forward': 5, 'architectures': ['BertModel'], 'id2label': {0: 'label'},\n"
        "    'label2id': {'label': '0'}, 'problem_type': 'regression',\n"
        "}\n"
    ),
}


def locate_sdist() -> Path:
    """The folder of `tests/test_modeling_common.py`, which `HF_TRANSFORMERS_SDIST` names or `.sdist/` holds."""
    version = importlib.metadata.version("transformers")
    default = Path(__file__).resolve().parents[2] / ".sdist" / f"transformers-{version}"
    return Path(os.environ.get("HF_TRANSFORMERS_SDIST") or default)


def sdist_is_there() -> bool:
    return (locate_sdist() / "tests" / "test_modeling_common.py").is_file()


def _workspace(sdist: Path) -> Path:
    ws = Path(tempfile.mkdtemp(prefix="hf_upstream_"))
    pkg = ws / PKG
    pkg.mkdir()
    for f in sorted((sdist / "tests").glob("test_*.py")):
        (pkg / f.name).symlink_to(f)
    for rel, text in _STUBS.items():
        p = pkg / rel
        p.parent.mkdir(parents=True, exist_ok=True)
        p.write_text(text)
    return ws


@functools.cache
def load_upstream() -> SimpleNamespace:
    """The mixins and helpers of the archive, by name."""
    sdist = locate_sdist()
    if sdist.name != f"transformers-{importlib.metadata.version('transformers')}":
        warnings.warn(f"{sdist} is not the archive of the transformers installed", stacklevel=2)
    if "fetch_hub_objects_for_ci" not in sys.modules:
        m = types.ModuleType("fetch_hub_objects_for_ci")
        m.url_to_local_path = lambda url: url
        sys.modules["fetch_hub_objects_for_ci"] = m
    sys.path.insert(0, str(_workspace(sdist)))

    def imp(name):
        return importlib.import_module(f"{PKG}.{name}")

    mc = imp("test_modeling_common")
    return SimpleNamespace(
        modeling_common=mc,
        ModelTesterMixin=mc.ModelTesterMixin,
        ids_tensor=mc.ids_tensor,
        floats_tensor=mc.floats_tensor,
        ConfigTester=imp("test_configuration_common").ConfigTester,
        FeatureExtractionSavingTestMixin=imp("test_feature_extraction_common").FeatureExtractionSavingTestMixin,
        SequenceFeatureExtractionTestMixin=imp(
            "test_sequence_feature_extraction_common"
        ).SequenceFeatureExtractionTestMixin,
        ImageProcessingTestMixin=imp("test_image_processing_common").ImageProcessingTestMixin,
        ImageProcessingTester=imp("test_image_processing_common").ImageProcessingTester,
        VideoProcessingTestMixin=imp("test_video_processing_common").VideoProcessingTestMixin,
        video_common=imp("test_video_processing_common"),
    )
