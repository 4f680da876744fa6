"""Everything about a run that needs no Ray: its config, its checks and its folder.

config       the run config: one YAML file         check       `bicot check`: is everything there?
resources    CPUs and GPUs of each pool            memory      what each pool needs of its GPU
rehearsal    the same run with tiny models         provenance  versions, commit and machine of a run
run_folder   the paths of a run, and its files     errors      errors that end a run, one sentence each
compose      `base` recipes, and overrides         yaml_text   reading and writing YAML
keys         every key, and the nearest ones       key_docs    docs/config.md and `bicot config`
schema       the JSON schema for editors

Write a run's files with `run_folder.write_atomically` or `append_json`: others may read the files meanwhile.
"""
