module example.test/features

go 1.24
