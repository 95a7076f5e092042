"""What a release is made and checked with: `make dist`, `make api`."""
