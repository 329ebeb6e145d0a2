"""Checks that upstream's ModelTesterMixin lacks: of models outside transformers, and of codebooks in buffers."""

import json
import os
import tempfile


class OutOfTreeChecks:
    """A base of every class that `make_model_test` makes."""

    def _oot_models(self):
        for cls in self.all_model_classes:
            yield cls, cls(self.model_tester.get_config()).eval()

    def test_oot_every_buffer_survives_save_load(self):
        """Persistent ones bit for bit, in their dtype; the others as `__init__` makes them."""
        import torch

        for cls, model in self._oot_models():
            with self.subTest(cls.__name__), tempfile.TemporaryDirectory() as d, torch.no_grad():
                persistent = set(model.state_dict())
                for i, (name, b) in enumerate(model.named_buffers()):
                    if name in persistent:
                        b.copy_(torch.randn_like(b) if b.is_floating_point() else torch.full_like(b, (i % 5) + 1))
                model.save_pretrained(d)
                new = dict(cls.from_pretrained(d).named_buffers())
                old = dict(model.named_buffers())
                self.assertEqual(sorted(new), sorted(old))
                for name, b in old.items():
                    self.assertEqual(b.dtype, new[name].dtype, name)
                    self.assertTrue(torch.equal(b, new[name]), f"{name} changed by save_pretrained/from_pretrained")

    def test_oot_requires_grad_survives_save_load(self):
        """transformers makes loaded parameters anew, with requires_grad=True."""
        for cls, model in self._oot_models():
            with self.subTest(cls.__name__), tempfile.TemporaryDirectory() as d:
                model.save_pretrained(d)
                new = cls.from_pretrained(d)
                want = {n: p.requires_grad for n, p in model.named_parameters()}
                got = {n: p.requires_grad for n, p in new.named_parameters()}
                self.assertEqual(want, got, [n for n in want if want[n] != got.get(n)])

    def test_oot_low_precision_load_keeps_integer_buffers(self):
        """An entry of `_keep_in_fp32_modules` whose name matches turns them into float32."""
        import torch

        for cls, model in self._oot_models():
            for dtype in (torch.bfloat16, torch.float16):
                with self.subTest(f"{cls.__name__} {dtype}"), tempfile.TemporaryDirectory() as d:
                    model.save_pretrained(d)
                    new = dict(cls.from_pretrained(d, dtype=dtype).named_buffers())
                    for name, b in model.named_buffers():
                        if not b.is_floating_point():
                            self.assertEqual(b.dtype, new[name].dtype, name)

    def test_oot_no_bool_persistent_buffer(self):
        """Upstream's test_torch_save_load fails on bool tensors; flags are integers or floats."""
        import torch

        for cls, model in self._oot_models():
            bad = [k for k, v in model.state_dict().items() if v.dtype == torch.bool]
            self.assertEqual(bad, [], cls.__name__)

    def test_oot_eval_forward_changes_no_state(self):
        import torch

        _, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for cls, model in self._oot_models():
            with self.subTest(cls.__name__), torch.no_grad():
                before = {k: v.clone() for k, v in model.state_dict().items()}
                model(**self._prepare_for_class(inputs, cls))
                changed = [k for k, v in model.state_dict().items() if not torch.equal(v, before[k])]
                self.assertEqual(changed, [])

    def test_oot_auto_map_entries_are_strings(self):
        """transformers writes a pair for a class with "Tokenizer" in its name, which it cannot load."""
        for cls, model in self._oot_models():
            config_cls = type(model.config)
            saved = cls.__dict__.get("_auto_class"), config_cls.__dict__.get("_auto_class")
            with self.subTest(cls.__name__), tempfile.TemporaryDirectory() as d:
                try:
                    config_cls.register_for_auto_class()
                    cls.register_for_auto_class("AutoModel")
                    model.save_pretrained(d)
                    auto_map = json.load(open(os.path.join(d, "config.json")))["auto_map"]
                    self.assertTrue(all(isinstance(v, str) for v in auto_map.values()), auto_map)
                finally:
                    cls._auto_class, config_cls._auto_class = saved

    def test_oot_has_a_float_parameter(self):
        """Without one a model cannot be saved."""
        for cls, model in self._oot_models():
            self.assertTrue(any(p.is_floating_point() for p in model.parameters()), cls.__name__)
