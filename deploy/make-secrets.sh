#!/usr/bin/env bash
# Writes random secrets for compose.yaml (deploy/.env) and for KubeRay (deploy/kuberay/base/from-make-secrets.sh.env), unless there
# are some. Neither file goes into git or into a job's upload.
set -euo pipefail
cd "$(dirname "$0")"
umask 077

random() {
  od -An -N32 -tx1 /dev/urandom | tr -d ' \n'
}

if [ -e .env ]; then
  echo "deploy/.env is there already"
else
  printf 'RAY_AUTH_TOKEN=%s\nREDIS_PASSWORD=%s\nGRAFANA_PASSWORD=%s\n' "$(random)" "$(random)" "$(random)" >.env
  echo "wrote deploy/.env"
fi

if [ -e kuberay/base/from-make-secrets.sh.env ]; then
  echo "deploy/kuberay/base/from-make-secrets.sh.env is there already"
else
  printf 'auth_token=%s\nredis_password=%s\n' "$(random)" "$(random)" >kuberay/base/from-make-secrets.sh.env
  echo "wrote deploy/kuberay/base/from-make-secrets.sh.env"
fi
