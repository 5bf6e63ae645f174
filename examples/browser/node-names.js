// What autobahn takes for granted, since Node has it and browsers do not.
export {Buffer} from 'buffer';
export const process = {
  env: {},
  nextTick: (task, ...args) => queueMicrotask(() => task(...args)),
};
