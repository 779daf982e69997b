module github.com/DefangLabs/secret-detector

go 1.21
