"""The same with a bucket: texts are read from it, and caches and student written to it, by one machine or by several.

    export AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=…    # and AWS_ENDPOINT_URL where the bucket is not Amazon's
    alm init mine.yaml --corpus 's3://bucket/texts/*.jsonl' --teacher MODEL --student MODEL
    python examples/bucket.py mine.yaml s3://bucket/prefix --only-cache
    python examples/bucket.py mine.yaml s3://bucket/prefix

The third line makes the caches, on a machine that holds the teacher. The last one, on any machine, finds them by their
fingerprints and trains the student. It needs `pip install 'alm-pipeline[s3]'`; for Google's and Microsoft's stores the
URL begins with gs:// or az://, and the extra is `gcs` or `azure`.
"""

import argparse
from pathlib import Path

from transformers import AutoModelForCausalLM

from alm_pipeline import Pipeline, UserError, load_config
from storage.upkeep.catalog import Catalog


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configuration", type=Path, help="a YAML file")
    parser.add_argument("storage", help="s3://bucket/prefix, or the URL of any other store")
    parser.add_argument("--only-cache", action="store_true", help="stop when the teacher's scores are there")
    given = parser.parse_args()

    pipeline = Pipeline(load_config(given.configuration), given.storage)
    if given.only_cache:
        pipeline.cache()
    else:
        pipeline.run()
        folder = pipeline.student.fetch()  # a copy in this machine's cache folder, compared with its checksums
        student = AutoModelForCausalLM.from_pretrained(folder)
        print(f"a student of {student.num_parameters():,} parameters, copied to {folder}")

    for entry in Catalog.open(given.storage).entries.values():
        print(f"{entry.key}: {entry.state}, {entry.bytes:,} bytes")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
