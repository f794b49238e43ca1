module example.org/cgroupfaults

go 1.25
