#!/usr/bin/env python3
"""LongLoRA (arXiv 2309.12307), table 15: the models of table 4 on PG19's test split.

    python scripts/tables/longlora_table15.py --models MODELS --data DATA --out OUT [--dry-run]

Cost: about 1,462 GPU-hours on H100 (tokens over the rates of table_cost.py), training included, which table 4 shares in the same --out.
Most of the evaluation is the last two columns: --stride 1024 makes it a quarter, and the numbers slightly other ones.
"""
from longlora_table4 import N, rows
from paper_table import RECALLED, Table, columns, main

TABLE = Table("longlora_table15", rows((8.38, 7.90, 7.57, 7.33, 7.16, 7.06, 7.04),
                                       (7.63, 7.21, 6.94, 6.75, 6.62, 6.57), (5.93, 5.63, 5.44, 5.32, 5.27)),
              columns(N, "pg19/test"), [RECALLED + " Checked: 7.04 (7B, 100,000), 6.57 (13B, 65,536), 5.27 (70B, 32,768)."])

if __name__ == "__main__":
    main(TABLE, __doc__)
