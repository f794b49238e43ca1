module example.org/seccompfaults

go 1.25
