/* `mop doctor`: measures the machine with the program itself, says what was found and what will hurt, and writes
 * the rates as a machine file (device/machines.h). Under mpirun rank 0 does so, and all ranks measure the wire
 * between them. */
#ifndef MOP_DOCTOR_H
#define MOP_DOCTOR_H

/* Returns the exit code: EXIT_DONE; EXIT_WRONG when something will not work; EXIT_USAGE, EXIT_IO. */
int doctor_command(int argc, char **argv);

#endif
