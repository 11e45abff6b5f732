/* Where mop was started, in words that a YAML file can hold. */
#ifndef MOP_DIRECTORY_H
#define MOP_DIRECTORY_H

/* The current directory and a '/'; NULL when it has no name in UTF-8, and errno says why. The caller frees. */
char *directory_now(void);

#endif
