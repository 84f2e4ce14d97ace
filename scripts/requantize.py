"""Converts a GGUF file's matrices to Q4_0, to measure the speed of that format: dequantized, then rounded to nearest.

    .venv/bin/python scripts/requantize.py IN.gguf OUT.gguf

The result loses quality; it is for measuring speed only.
"""

from __future__ import annotations

import sys

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, quants

FILE_TYPE_Q4_0 = 2


def main(source: str, target: str) -> None:
    """Copies the metadata; floats stay as they are."""
    reader = GGUFReader(source)
    writer = GGUFWriter(target, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        kind = field.types[0]
        within = field.types[-1] if kind == GGUFValueType.ARRAY else None
        value = FILE_TYPE_Q4_0 if key == "general.file_type" else field.contents()
        writer.add_key_value(key, value, kind, sub_type=within)
    for tensor in reader.tensors:
        if tensor.tensor_type == GGMLQuantizationType.F32:
            writer.add_tensor(tensor.name, np.array(tensor.data))
            continue
        values = quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        kind = GGMLQuantizationType.Q4_0
        writer.add_tensor(tensor.name, quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(*sys.argv[1:3])
